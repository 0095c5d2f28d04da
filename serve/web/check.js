// A classic script, so that it runs where nothing else of this page does.
(function () {
  "use strict";
  var box = document.getElementById("problem");
  window.showProblem = function (sentence) {
    box.textContent = sentence;
    box.hidden = false;
  };
  function stop(sentence) {
    document.documentElement.className = "broken";
    window.showProblem(sentence);
  }
  if (location.protocol === "file:") {
    stop(
      "A browser does not let a page that was opened as a file load its parts. Serve this folder " +
        "and open it from there: python3 -m http.server -d FOLDER, then http://localhost:8000"
    );
    return;
  }
  var missing = [];
  if (!("noModule" in HTMLScriptElement.prototype)) missing.push("JavaScript modules");
  if (typeof WebAssembly !== "object") missing.push("WebAssembly");
  if (typeof DecompressionStream !== "function") missing.push("DecompressionStream");
  if (typeof BigInt64Array !== "function") missing.push("64-bit integers");
  if (missing.length) {
    stop(
      "This browser cannot run the page: it lacks " + missing.join(", ") +
        ". A browser of 2023 or later has all it needs."
    );
  }
})();
