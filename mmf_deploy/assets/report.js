
"use strict";
// Everything can be read without this: it copies commands and sorts tables.
for (const box of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const code = box.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  box.append(button);
}

const number = (text) => {
  const found = text.replaceAll(",", "").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
};

for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  if (given.length < 3) continue;
  heads.forEach((head, column) => {
    const isText = head.classList.contains("t");
    const compare = (a, b) => {
      const [p, q] = [a, b].map((row) => row.cells[column].textContent);
      return isText ? p.localeCompare(q, "en", {numeric: true}) : number(p) - number(q);
    };
    const absent = (row) => {
      const text = row.cells[column].textContent;
      return isText ? text === "" : Number.isNaN(number(text));
    };
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      // up, down, as it was
      const before = head.getAttribute("aria-sort");
      for (const other of heads) other.removeAttribute("aria-sort");
      if (before === "descending") return body.append(...given);
      const sign = before === "ascending" ? -1 : 1;
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const present = given.filter((row) => !absent(row)).sort((a, b) => sign * compare(a, b));
      return body.append(...present, ...given.filter(absent));
    });
    head.append(button);
  });
}
