"use strict";
(() => {
  const panel = document.getElementById("details");
  const tokens = ".response .tok";
  let shown = null;
  let hiding = 0;

  const make = (parent, tag, text, name) => {
    const element = parent.appendChild(document.createElement(tag));
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };

  const fill = (details) => {
    panel.replaceChildren();
    const head = make(panel, "p", undefined, "head");
    make(head, "code", details.text);
    if (details.critical) make(head, "span", "critical", "badge");
    if (details.undecided) make(head, "span", "undecided", "badge open");
    make(panel, "p", `Position ${details.position} · entropy ${details.entropy} nats`, "meta");
    const table = make(panel, "table");
    const titles = make(make(table, "thead"), "tr");
    for (const title of ["Token", "Probability", "Answer"]) make(titles, "th", title).scope = "col";
    const body = make(table, "tbody");
    const own = [details.text, details.probability, details.undecided ? "wrong" : "right", "own"];
    for (const [text, probability, verdict, name] of [own, ...details.alternatives]) {
      const row = make(body, "tr", undefined, name);
      make(make(row, "td"), "code", text);
      make(row, "td", probability);
      const mark = { right: "✓ ", "still right": "✓ ", wrong: "✗ " }[verdict] ?? "";
      make(row, "td", mark + verdict, verdict.replace(" ", "-"));
    }
  };

  const place = (token) => {
    const sheet = window.matchMedia("(max-width: 640px)").matches;
    panel.style.left = panel.style.top = "";
    if (sheet) return;
    const box = token.getClientRects()[0];
    const width = document.documentElement.clientWidth;
    const below = box.bottom + 8 + panel.offsetHeight <= window.innerHeight || box.top < panel.offsetHeight + 8;
    const top = below ? box.bottom + 8 : box.top - panel.offsetHeight - 8;
    panel.style.left = `${window.scrollX + Math.max(12, Math.min(box.left - 14, width - panel.offsetWidth - 12))}px`;
    panel.style.top = `${window.scrollY + top}px`;
  };

  const hide = () => {
    clearTimeout(hiding);
    shown?.classList.remove("shown");
    shown?.removeAttribute("aria-describedby");
    shown = null;
    panel.hidden = true;
  };

  const show = (token) => {
    clearTimeout(hiding);
    if (token === shown) return;
    hide();
    shown = token;
    fill(JSON.parse(token.dataset.details));
    panel.hidden = false;
    token.classList.add("shown");
    token.setAttribute("aria-describedby", "details");
    place(token);
  };

  const focused = () => (document.activeElement?.matches(tokens) ? document.activeElement : null);

  const leave = () => {
    clearTimeout(hiding);
    hiding = setTimeout(() => (focused() ? show(focused()) : hide()), 180);
  };

  const go = (token) => {
    for (const other of token.parentElement.children) other.tabIndex = other === token ? 0 : -1;
    token.focus();
  };

  for (const response of document.querySelectorAll(".response")) {
    response.setAttribute("role", "listbox");
    response.setAttribute("aria-multiselectable", "true");
    response.setAttribute("aria-readonly", "true");
    response.setAttribute("aria-orientation", "horizontal");
    for (const token of response.children) {
      token.removeAttribute("title");
      token.setAttribute("role", "option");
      token.setAttribute("aria-selected", String(token.classList.contains("critical")));
      token.tabIndex = -1;
    }
    const first = response.querySelector(".critical") ?? response.firstElementChild;
    if (first) first.tabIndex = 0;

    response.addEventListener("mouseover", (event) => {
      const token = event.target.closest(tokens);
      if (token) show(token);
    });
    response.addEventListener("mouseleave", leave);
    response.addEventListener("focusin", (event) => show(event.target));
    response.addEventListener("focusout", leave);
    response.addEventListener("click", (event) => {
      const token = event.target.closest(tokens);
      if (token) go(token);
    });
    response.addEventListener("keydown", (event) => {
      const token = event.target;
      const next = {
        ArrowRight: token.nextElementSibling,
        ArrowLeft: token.previousElementSibling,
        Home: response.firstElementChild,
        End: response.lastElementChild,
      }[event.key];
      if (next) {
        event.preventDefault();
        go(next);
      }
    });
  }

  panel.addEventListener("mouseenter", () => clearTimeout(hiding));
  panel.addEventListener("mouseleave", leave);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(`${tokens}, #details`)) hide();
  });
  window.addEventListener("resize", () => shown && place(shown));
  document.body.dataset.ready = "1";
})();
