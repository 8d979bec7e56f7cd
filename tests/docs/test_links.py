"""Links between the pages: every file, picture and section that a page points to exists, and no page is lost."""

from urllib.parse import unquote

import pytest

from tests.helpers.pages import PAGES, ROOT, anchors, links, name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    """Addresses on the web are not fetched; they only have to be https."""
    broken = []
    for target in links(page):
        if "://" in target:
            if not target.startswith("https://"):
                broken.append(f"{target}: not https")
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            broken.append(f"{target}: no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file)):
            broken.append(f"{target}: no such section")
    assert broken == []


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    decisions = ROOT / "docs" / "decisions" / "README.md"
    linked = {
        (page.parent / target.partition("#")[0]).resolve() for page in (index, decisions) for target in links(page)
    }
    assert [name(page) for page in PAGES if page not in {*linked, index}] == []


def test_every_picture_is_shown():
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    pictures = {path for path in (ROOT / "docs" / "images").iterdir() if path.suffix in (".png", ".svg")}
    assert sorted(path.name for path in pictures - shown) == []
