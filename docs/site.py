"""Hooks of MkDocs: pages outside of docs/ join the site, and links keep leading to the same files.

Pages link to each other as on a code host, by the paths of the repository. On the site a linked page is found at its place
there, and any other linked file of the repository is copied to `files/`.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# page of the repository -> page of the site; all other pages of docs/ keep their names
MOVED = {
    "README.md": "index.md",
    "docs/README.md": "contents.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "csrc/README.md": "extension.md",
    "bundles/wscxr_chest_xray/docs/README.md": "bundle.md",
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files, config):
    """Add the pages from outside of docs/ and the files that pages link to."""
    files.remove(files.get_file_from_path("README.md"))
    for source, page in MOVED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for file in list(files.documentation_pages()):
        for target in LINK.findall(file.content_string):
            path = _resolve(file.src_uri, target[1])
            if path and path not in MOVED and not path.startswith("docs/") and (ROOT / path).is_file():
                copy = f"files/{path}"
                if files.get_file_from_path(copy) is None:
                    files.append(File.generated(config, copy, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead the links of a page to their places on the site; a link to nothing stays, and MkDocs reports it."""

    def moved(match):
        target, _, anchor = match[2].partition("#")
        path = _resolve(page.file.src_uri, target)
        if not path or (path != _source(page.file.src_uri) and not (ROOT / path).is_file()):
            return match[0]
        place = MOVED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")
        relative = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{relative}{'#' + anchor if anchor else ''}{match[3]}"

    return LINK.sub(moved, markdown)


def _source(page):
    """Return the path in the repository of a page of the site."""
    return next((source for source, place in MOVED.items() if place == page), f"docs/{page}")


def _resolve(page, target):
    """Return the path in the repository that a link of a page leads to; "" for an address or a section of the page itself."""
    path = target.partition("#")[0]
    if not path or "://" in path or path.startswith("mailto:"):
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(_source(page)), path))
