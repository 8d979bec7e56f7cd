"""A page in the browser as a screen reader is told it, and findings of axe-core, the accessibility checker."""

from pathlib import Path

from tests.helpers.webdriver import Browser, missing

AXE = Path(__file__).parents[1] / "javascript" / "node_modules" / "axe-core" / "axe.min.js"
RUN = """
  return axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }).then((found) =>
    found.violations.map((rule) => ({
      rule: rule.id, impact: rule.impact, places: rule.nodes.map((node) => node.target.join(" ")).slice(0, 5),
    })));
"""


def reason_to_skip() -> str | None:
    """Return what is not installed; None when everything is."""
    return missing() or (None if AXE.is_file() else "axe-core is not installed: make lint-js installs it")


def findings(browser: Browser) -> list[dict]:
    """Return the rules that the page in the browser breaks: name, impact (minor to critical) and places."""
    browser.js(AXE.read_text(encoding="utf-8") + "\nwindow.axe = axe;")
    return browser.js(RUN)


def spoken(browser: Browser) -> list[tuple[str, str, dict]]:
    """Return role, name and states of what a screen reader is told, in reading order."""
    nodes = {node["nodeId"]: node for node in browser.devtools("Accessibility.getFullAXTree")["nodes"]}

    def walk(node):
        if not node["ignored"]:
            states = {state["name"]: state["value"].get("value") for state in node.get("properties", [])}
            yield node["role"]["value"], node.get("name", {}).get("value", ""), states
        for child in node.get("childIds", []):
            if child in nodes:
                yield from walk(nodes[child])

    return [told for node in nodes.values() if "parentId" not in node for told in walk(node)]
