"""The Markdown pages of the project, taken apart for tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "csrc/*.md", "bundles/*/docs/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def name(page):
    """Return the path of a page below the repository, for test ids and messages."""
    return page.relative_to(ROOT).as_posix()


def prose(page):
    """Return the text of a page without fenced code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def code_lines(page):
    """Return the lines of fenced code, with continued lines joined, and the inline code of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = [block.replace("\\\n", " ").splitlines()[1:-1] for block in _FENCE.findall(text)]
    return [line for block in blocks for line in block] + re.findall(r"`([^`\n]+)`", prose(page))


def links(page):
    """Return the targets of all links and images outside of code."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\]\(\s*([^()\s]+)\s*\)", text)


def anchors(page):
    """Return the anchors of a page's headings, as GitHub builds them."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = sum(other == slug or re.fullmatch(re.escape(slug) + r"-\d+", other) is not None for other in found)
        found.append(f"{slug}-{count}" if count else slug)
    return found


def rows(page, section=""):
    """Return the cells of all table rows of a page, or of one section; header rows and rulers are left out."""
    text = prose(page)
    if section:
        start = re.search(rf"^#+ {re.escape(section)}$", text, re.MULTILINE)
        assert start, f"{name(page)} has no section {section}"
        text = re.split(r"^#+ ", text[start.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    lines = text.splitlines()
    tables = [line for number, line in enumerate(lines) if line.startswith("|") and not _is_header(lines, number)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in tables]


def _is_header(lines, number):
    ruler = re.compile(r"^\|[\s:|-]+\|$")
    return bool(ruler.match(lines[number])) or (number + 1 < len(lines) and bool(ruler.match(lines[number + 1])))
