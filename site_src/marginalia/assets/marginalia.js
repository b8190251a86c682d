// Copying, the switch for shapes and their details. A page reads whole without any of it.
(() => {
  "use strict";
  const SHAPES = "marginalia-shapes";

  const copy = async (text) => {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const area = Object.assign(document.createElement("textarea"), { value: text });
    area.style.position = "fixed";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };

  // The code of a row as it stands in the file: without line numbers, shapes and outputs.
  const codeOf = (row) =>
    [...row.querySelectorAll(".mg-line")]
      .map((line) => {
        const bare = line.cloneNode(true);
        bare.querySelectorAll(".mg-shape, .mg-ln").forEach((extra) => extra.remove());
        return bare.textContent;
      })
      .join("\n") + "\n";

  const say = (button, word) => {
    const before = button.dataset.mgSays ?? button.textContent;
    button.dataset.mgSays = before;
    button.textContent = word;
    setTimeout(() => (button.textContent = before), 1500);
  };

  const copyAndSay = async (button, text) => {
    try {
      await copy(text);
      say(button, "Copied");
    } catch {
      say(button, "Not copied");
    }
  };

  const onCopy = (button) => {
    const text = button.matches(".mg-run-copy")
      ? JSON.parse(document.querySelector(".mg-snippets").textContent)[button.dataset.mgSnippet]
      : codeOf(button.closest(".mg-row"));
    return copyAndSay(button, text);
  };

  const stored = () => {
    try {
      return localStorage.getItem(SHAPES);
    } catch {
      return null; // storage is off: the switch still works for this page
    }
  };

  const showShapes = (shown) => {
    document.documentElement.classList.toggle("mg-no-shapes", !shown);
    document.querySelectorAll(".mg-shapes-toggle").forEach((b) => b.setAttribute("aria-pressed", shown));
  };

  const onToggle = () => {
    const shown = document.documentElement.classList.contains("mg-no-shapes");
    showShapes(shown);
    try {
      localStorage.setItem(SHAPES, shown ? "on" : "off");
    } catch {
      // see `stored`
    }
  };

  const tip = Object.assign(document.createElement("div"), { className: "mg-tip", hidden: true });
  tip.setAttribute("aria-hidden", "true"); // the button's label says the same
  let current = null; // the shape that the tip tells of

  const hideTip = () => {
    tip.hidden = true;
    current = null;
  };

  const showTip = (shape) => {
    current = shape;
    tip.textContent = shape.dataset.mgDetail;
    tip.hidden = false;
    tip.style.left = tip.style.top = "0"; // where it stood before, it may have had less room
    const place = shape.getBoundingClientRect();
    const box = tip.getBoundingClientRect();
    const left = Math.max(4, Math.min(place.left, innerWidth - box.width - 4));
    const above = place.top - box.height - 4;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 0 ? above : place.bottom + 4}px`;
  };

  // Tables that a demo shows can be sorted by a column: numbers by their value, the rest as text.
  const number = (text) => {
    const digits = text.replace(/[,\u2009\u202f ]/g, "").replace("−", "-");
    return /^[+-]?(\d+\.?\d*|\.\d+)/.test(digits) ? parseFloat(digits) : NaN;
  };

  const order = (a, b) => {
    if (Number.isNaN(number(a)) || Number.isNaN(number(b))) return a.localeCompare(b, undefined, { numeric: true });
    return number(a) - number(b);
  };

  const sort = (head) => {
    const body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    const text = (row) => row.cells[head.cellIndex].textContent.trim();
    const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * order(text(a), text(b)));
    for (const cell of head.parentElement.cells) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  };

  const makeSortable = () => {
    for (const head of document.querySelectorAll(".mg-rich thead tr:only-child th:not(:empty)")) {
      if (head.closest("table").tBodies[0]?.querySelector("[rowspan], [colspan]")) continue;
      const button = Object.assign(document.createElement("button"), { type: "button", className: "mg-sort" });
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(head));
      head.append(button);
    }
  };

  const shapeOf = (event) => event.target.closest?.(".mg-shape");
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".mg-copy, .mg-run-copy");
    if (button) onCopy(button);
    if (event.target.closest(".mg-shapes-toggle")) onToggle();
    shapeOf(event)?.classList.toggle("mg-open");
  });
  for (const type of ["mouseover", "focusin"])
    document.addEventListener(type, (event) => shapeOf(event) && showTip(shapeOf(event)));
  for (const type of ["mouseout", "focusout"]) document.addEventListener(type, hideTip);
  // Tabbing to a shape may scroll it into view: its tip goes with it.
  const followTip = () => (current && current === document.activeElement ? showTip(current) : hideTip());
  document.addEventListener("scroll", followTip, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  // Material searches when a key goes up: text that is pasted or dictated needs one, too.
  document.addEventListener("input", (event) => {
    if (event.target.matches(".md-search__input")) event.target.dispatchEvent(new KeyboardEvent("keyup"));
  });

  // What Material leaves unnamed or out of reach of the keyboard, and a copy button for its code.
  const mend = () => {
    document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
    document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => (table.tabIndex = 0));
    // Only what scrolls needs a stop for the Tab key.
    document.querySelectorAll(".mg-pre").forEach((code) => {
      code.tabIndex = code.scrollWidth > code.clientWidth ? 0 : -1;
    });
    document.querySelectorAll(".highlight pre").forEach((code) => {
      code.tabIndex = 0;
      if (code.parentElement.querySelector(".mg-copy-block")) return;
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Copy" });
      button.className = "mg-copy-block";
      button.addEventListener("click", () => copyAndSay(button, code.textContent));
      code.before(button);
    });
  };

  const start = () => {
    document.body.append(tip);
    makeSortable();
    showShapes(stored() !== "off");
    mend();
    setTimeout(mend, 300); // Material wraps tables when it has started
    document.fonts.ready.then(mend);
    addEventListener("resize", mend, { passive: true });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
