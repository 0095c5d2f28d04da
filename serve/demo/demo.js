// What runs in the browser. Everything is delegated from the document, because results replace
// each other all the time.
(function () {
  "use strict";

  var link = function (query) {
    return location.origin + location.pathname + "?" + query;
  };

  var save = function (url, name) {
    var a = document.createElement("a");
    a.href = url;
    a.download = name;
    document.body.append(a);
    a.click();
    a.remove();
  };

  var says = function (button, word) {
    var before = button.dataset.says || button.textContent;
    button.dataset.says = before;
    button.textContent = word;
    button.setAttribute("aria-live", "polite");
    clearTimeout(button.timer);
    button.timer = setTimeout(function () { button.textContent = before; }, 2000);
  };

  // Saving

  var copy = async function (text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch (e) {
      // pages that did not come by https or from this machine have no clipboard
      var area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      var done = document.execCommand("copy");
      area.remove();
      if (!done) throw e;
    }
  };

  var saveGrid = function (grid) {
    var images = [...grid.querySelectorAll("img")];
    var columns = Math.ceil(Math.sqrt(images.length));
    var [w, h] = [images[0].naturalWidth, images[0].naturalHeight];
    var scale = Math.max(1, Math.round(64 / h));
    var gap = 2;
    var canvas = document.createElement("canvas");
    canvas.width = columns * (scale * w + gap) + gap;
    canvas.height = Math.ceil(images.length / columns) * (scale * h + gap) + gap;
    var pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = false;
    images.forEach(function (image, k) {
      var left = gap + (k % columns) * (scale * w + gap);
      var top = gap + Math.floor(k / columns) * (scale * h + gap);
      pen.drawImage(image, left, top, scale * w, scale * h);
    });
    save(canvas.toDataURL("image/png"), grid.dataset.name + ".png");
  };

  var saveAnimation = async function (button) {
    var stage = button.closest("#mmf-interpolate");
    var host = [stage, ...stage.querySelectorAll("*")].find((e) => e.mmfAnimation);
    says(button, "Making it…");
    try {
      var found = await host.mmfAnimation(button.dataset.query);
      if (found.error) throw new Error(found.error);
      save(found.data, button.dataset.name);
      says(button, "Saved");
    } catch (e) {
      says(button, e.message || "It failed");
    }
  };

  // The player

  var show = function (player, k) {
    var frames = player.querySelectorAll(".mmf-screen img");
    var scrub = player.querySelector(".mmf-scrub");
    frames.forEach(function (frame, j) { frame.hidden = j !== k; });
    scrub.value = k;
    scrub.setAttribute("aria-valuetext", "frame " + (k + 1) + " of " + frames.length);
    player.querySelector("output").textContent = k + 1 + " / " + frames.length;
  };

  var play = function (player, on) {
    player.classList.toggle("mmf-playing", on);
    player.querySelector(".mmf-play").setAttribute("aria-label", on ? "Pause" : "Play");
    clearInterval(player.timer);
    if (!on) return;
    var step = 1;
    player.timer = setInterval(function () {
      if (!player.isConnected) return clearInterval(player.timer);
      var scrub = player.querySelector(".mmf-scrub");
      var [at, last] = [Number(scrub.value), Number(scrub.max)];
      if (at + step > last || at + step < 0) step = -step;
      show(player, at + step);
    }, 1000 / Number(player.dataset.fps));
  };

  // Gradio's radio buttons are no group for the keyboard, and theirs has no name

  var tidy = function () {
    document.querySelectorAll("fieldset.block").forEach(function (group) {
      var title = group.querySelector("[data-testid=block-info]");
      if (title) group.setAttribute("aria-label", title.textContent.trim());
      group.querySelectorAll("input[type=radio]").forEach(function (radio) {
        if (radio.name !== group.id) radio.name = group.id;
      });
    });
  };
  var waiting = false;
  new MutationObserver(function () {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(function () { waiting = false; tidy(); start(); });
  }).observe(document.documentElement, { childList: true, subtree: true });

  var calm = matchMedia("(prefers-reduced-motion: reduce)");
  var paused = false; // by the visitor, who then wants the next one to stand still, too

  var start = function () {
    document.querySelectorAll(".mmf-player:not([data-seen])").forEach(function (player) {
      player.dataset.seen = "";
      if (!paused && !calm.matches) play(player, true);
    });
  };

  // Events

  var arm = function (event) {
    var a = event.target.closest && event.target.closest("a.mmf-save");
    if (a) a.href = a.querySelector("img").src;
  };
  ["pointerdown", "focusin", "click"].forEach(function (type) {
    document.addEventListener(type, arm, true);
  });

  document.addEventListener("click", function (event) {
    var button = event.target.closest && event.target.closest("[data-mmf]");
    if (!button) return;
    var what = button.dataset.mmf;
    if (what === "copy") {
      copy(link(button.dataset.query)).then(
        function () { says(button, "Copied"); },
        function () { says(button, "Open the link to copy it"); }
      );
    } else if (what === "grid") {
      saveGrid(button.closest(".mmf-stage").querySelector(".mmf-grid"));
    } else if (what === "animation") {
      saveAnimation(button);
    } else if (what === "play") {
      var player = button.closest(".mmf-player");
      paused = player.classList.contains("mmf-playing");
      play(player, !paused);
    }
  });

  document.addEventListener("input", function (event) {
    if (event.target.closest("#mmf-seed")) {
      // who types a seed wants that one, and not another from the button
      var lock = document.querySelector("#mmf-lock input");
      if (lock && !lock.checked) lock.click();
    }
    if (!event.target.matches(".mmf-scrub")) return;
    var player = event.target.closest(".mmf-player");
    paused = true;
    play(player, false);
    show(player, Number(event.target.value));
  });
})();
