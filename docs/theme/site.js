// What scrolls sideways can be reached by keyboard, and regions of the same kind have names of their own.
window.addEventListener("load", () => {
  const reach = () => {
    for (const part of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) { part.tabIndex = 0; }
    document.querySelectorAll(".md-code__nav").forEach((part, number) => {
      part.setAttribute("aria-label", `Code ${number + 1}`);
    });
  };
  reach();
  new MutationObserver(reach).observe(document.querySelector("article"), { childList: true, subtree: true });
});
