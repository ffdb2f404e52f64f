(() => {
  "use strict";
  const says = document.getElementById("says");
  let chosen = null;

  function choose(anchor) {
    for (const part of document.querySelectorAll(".chosen")) part.classList.remove("chosen");
    for (const button of document.querySelectorAll("button[data-anchor]")) button.setAttribute("aria-pressed", "false");
    chosen = anchor === chosen ? null : anchor;
    document.body.classList.toggle("choosing", chosen !== null);
    says.textContent = "";
    if (chosen === null) return;
    for (const part of document.querySelectorAll(`[data-anchor="${chosen}"]`)) {
      part.classList.add("chosen");
      if (part.matches("button")) part.setAttribute("aria-pressed", "true");
      if (part.dataset.says) says.textContent = part.dataset.says;
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-anchor]");
    if (button) choose(button.dataset.anchor);
    const all = event.target.closest("button[data-all]");
    if (all) {
      const open = document.getElementById(all.getAttribute("aria-controls")).classList.toggle("all");
      all.setAttribute("aria-expanded", String(open));
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chosen !== null) choose(chosen);
  });
})();
