"use strict";
(() => {
  // Filters: each button shows or hides the rows and marks of one state, everywhere on the page.
  const shown = (state, yes) => {
    for (const found of document.querySelectorAll("[data-state]")) {
      if (found.dataset.state !== state) continue;
      if (yes) found.removeAttribute("hidden");
      else found.setAttribute("hidden", "");
    }
    for (const button of document.querySelectorAll("[data-filter]")) {
      if (button.dataset.filter === state) button.setAttribute("aria-pressed", String(yes));
    }
  };
  for (const group of document.querySelectorAll(".filters")) group.hidden = false;
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.addEventListener("click", () => {
      shown(button.dataset.filter, button.getAttribute("aria-pressed") !== "true");
    });
  }

  // One tab stop for each group of marks; arrow keys move within it, from left to right.
  const place = (mark) => Number(/translate\(([-0-9.]+)/.exec(mark.getAttribute("transform"))?.[1] ?? 0);
  for (const group of document.querySelectorAll(".marks, .signs, .bar")) {
    const all = [...group.querySelectorAll("a, .share")];
    if (group.matches(".marks, .signs")) all.sort((a, b) => place(a) - place(b));
    all.forEach((mark, index) => mark.setAttribute("tabindex", index === all.length - 1 ? "0" : "-1"));
    group.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -all.length, End: all.length };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const visible = all.filter((mark) => !mark.hasAttribute("hidden"));
      const current = visible.indexOf(document.activeElement);
      const next = visible[Math.min(Math.max(current + steps[event.key], 0), visible.length - 1)];
      if (!next) return;
      for (const mark of all) mark.setAttribute("tabindex", mark === next ? "0" : "-1");
      next.focus();
    });
  }

  // Tooltips: the titles of marks, also for the keyboard.
  const tooltip = document.createElement("div");
  tooltip.className = "tooltip";
  tooltip.setAttribute("role", "tooltip");
  tooltip.hidden = true;
  document.body.append(tooltip);
  for (const title of document.querySelectorAll("svg.picture title")) {
    const owner = title.parentElement;
    owner.setAttribute("aria-label", title.textContent);
    title.remove();
    const show = () => {
      tooltip.textContent = owner.getAttribute("aria-label");
      tooltip.hidden = false;
      const box = owner.getBoundingClientRect();
      const left = Math.min(box.left + box.width / 2 + 8, document.documentElement.clientWidth - tooltip.offsetWidth - 8);
      tooltip.style.left = `${Math.max(left, 8) + scrollX}px`;
      tooltip.style.top = `${Math.max(box.top - tooltip.offsetHeight - 4, 4) + scrollY}px`;
    };
    const hide = () => {
      tooltip.hidden = true;
    };
    owner.addEventListener("pointerenter", show);
    owner.addEventListener("focus", show);
    owner.addEventListener("pointerleave", hide);
    owner.addEventListener("blur", hide);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tooltip.hidden = true;
  });

  // A served page loads itself again when the run has grown; hidden states stay hidden.
  const { version, poll } = document.body.dataset;
  if (!poll) return;
  const memory = `hidden ${location.pathname}${location.search}`;
  const hidden = () =>
    [...document.querySelectorAll("[data-filter][aria-pressed=false]")].map((button) => button.dataset.filter);
  for (const state of JSON.parse(sessionStorage.getItem(memory) ?? "[]")) shown(state, false);
  addEventListener("pagehide", () => sessionStorage.setItem(memory, JSON.stringify(hidden())));
  setInterval(async () => {
    if (document.hidden) return;
    const answer = await fetch(poll).catch(() => null);
    document.body.classList.toggle("stale", !answer?.ok);
    if (answer?.ok && (await answer.text()) !== version) location.reload();
  }, 3000);
})();
