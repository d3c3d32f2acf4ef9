/* What the theme's pages lack for readers who use a keyboard or a screen reader. Nothing else lives here. */
(() => {
  "use strict";

  const all = (selector) => document.querySelectorAll(selector);

  // A box that scrolls must be reachable without a mouse, and say what it holds.
  const reachable = (box, name) => {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    if (scrolls && !box.hasAttribute("tabindex")) {
      box.setAttribute("tabindex", "0");
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", name);
      box.dataset.cmpReachable = "";
    } else if (!scrolls && "cmpReachable" in box.dataset) {
      for (const attribute of ["tabindex", "role", "aria-label", "data-cmp-reachable"]) {
        box.removeAttribute(attribute);
      }
    }
  };

  const numbered = (selector, name) => {
    let i = 0;
    for (const box of all(selector)) reachable(box, `${name} ${(i += 1)}`);
  };

  const scrollers = () => {
    numbered(".bd-article div.math", "Equation");
    numbered(".bd-article .pst-scrollable-table-container", "Table");
    numbered(".bd-article div.highlight pre", "Code");
  };

  const cure = () => {
    // Roles of citations: deprecated, and the list's children are links where it wants items.
    for (const list of all(".citation-list[role], .footnote-list[role]")) list.removeAttribute("role");
    for (const entry of all("[role='doc-biblioentry'], [role='doc-footnote'], [role='doc-endnote']")) {
      entry.removeAttribute("role");
    }
    // The logo lies outside every landmark.
    for (const logo of all(".bd-sidebar-primary .navbar-brand")) {
      const item = logo.closest(".sidebar-primary-item");
      if (item && !item.closest("nav, [role='navigation']")) {
        item.setAttribute("role", "navigation");
        item.setAttribute("aria-label", "Front page");
      }
    }
    // Folds need a name, also those whose text is drawn by a style sheet.
    for (const summary of all("details > summary")) {
      if (!summary.textContent.trim() && !summary.hasAttribute("aria-label")) {
        summary.setAttribute("aria-label", "Show or hide");
      }
    }
    // Each folded solution brings the same id.
    const seen = new Set();
    for (const element of all(".bd-article [id]")) {
      if (seen.has(element.id)) element.removeAttribute("id");
      else seen.add(element.id);
    }
    scrollers();
  };

  const start = () => {
    cure();
    // Formulas get their width when MathJax has set them.
    window.MathJax?.startup?.promise?.then(scrollers);
    window.addEventListener("load", () => {
      cure();
      window.MathJax?.startup?.promise?.then(scrollers);
    });
    let pending = 0;
    window.addEventListener("resize", () => {
      cancelAnimationFrame(pending);
      pending = requestAnimationFrame(scrollers);
    });
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
