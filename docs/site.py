"""Hooks of MkDocs: pages outside of docs/ join the site, links keep leading to the same files, and some pages are generated.

Pages link to each other as on a code host, by the paths of the repository. On the site a linked page is found at its place
there, and any other linked file of the repository is copied to `files/`. The page of the command line comes from the parsers
of the commands, that of the Python interface from signatures and docstrings; neither needs torch. Notebooks become pages with
the outputs that are stored in them.
"""

import argparse
import ast
import base64
import json
import os
import posixpath
import re
import sys
import textwrap
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
    files.append(File.generated(config, "commands.md", content=command_line()))
    files.append(File.generated(config, "reference.md", content=reference()))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page, pictures = notebook_page(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
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
        if re.fullmatch(r"docs/notebooks/\w+\.ipynb", path):
            path = str(Path(path).with_suffix(".md"))
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


def notebook_page(path):
    """Return the page of a notebook, and its pictures by file name."""
    lines, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [text, ""]
            continue
        lines += ["```python", text, "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            shown = "".join(data["text/plain"]).rstrip()
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                lines += [f"![Value of the last line above: {shown}]({name}){{ width=320 }}", ""]
            else:
                lines += ["```text", shown, "```", ""]
    download = f'<a href="{path.name}" download>{path.name}</a>'
    lines += [f"This page is the notebook {download} with the outputs of one run on a CPU.", ""]
    return "\n".join(lines), pictures


def command_line():
    """Return the page with the help of every command."""
    sys.path.insert(0, str(ROOT))
    os.environ["COLUMNS"] = "96"  # argparse breaks lines there
    from monai_wscxr.commands.main import create_parser

    lines = [
        "# Command line",
        "",
        "`monai-wscxr COMMAND --help` prints the same. Statuses: [exit_codes.md](exit_codes.md).",
    ]

    def add(parser, level):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in dict(sorted(action.choices.items())).values():
                    lines.extend(["", f"{'#' * level} {child.prog.removeprefix('monai-wscxr ')}", "", "```text"])
                    lines.extend([child.format_help().rstrip(), "```"])
                    add(child, level + 1)

    add(create_parser(), 2)
    return "\n".join(lines) + "\n"


def reference():
    """Return the page with the public names of every package: signatures and docstrings."""
    lines = [
        "# Python interface",
        "",
        "Public names by package; `monai_wscxr.load` and `monai_wscxr.train` are shown in [python.md](python.md).",
    ]
    for stub in sorted((ROOT / "monai_wscxr").rglob("__init__.pyi")):
        package = stub.parent.relative_to(ROOT).as_posix().replace("/", ".")
        lines += ["", f"## {package}"]
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                lines += [line for name in node.names for line in _described(node.module, name.name)]
    return "\n".join(lines) + "\n"


def _described(module, name):
    """Return the lines that describe a class with its public methods, or a function; none for a value."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return _described(node.module, name)
    node = next((n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name), None)
    if node is None:
        return []
    if isinstance(node, ast.FunctionDef):
        return _entry("###", name, _signature(name, node), node)
    constructor = _constructor(node)
    lines = _entry("###", name, _signature(name, constructor) if constructor else f"class {name}", node)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and ast.get_docstring(part):
            decorators = {ast.unparse(decorator) for decorator in part.decorator_list}
            signature = f"{name}.{part.name}" if "property" in decorators else _signature(f"{name}.{part.name}", part)
            lines += _entry("####", f"{name}.{part.name}", signature, part)
    return lines


def _entry(heading, title, signature, node):
    """Return heading, signature and docstring of one name."""
    shown = textwrap.fill(signature, 96, subsequent_indent="    ", break_long_words=False)
    return ["", f"{heading} {title}", "", "```python", shown, "```", "", *_markdown(ast.get_docstring(node) or "")]


def _signature(name, function):
    """Return the signature of a function or method without `self`."""
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(function.args))
    returns = f" -> {ast.unparse(function.returns)}" if function.returns and function.name != "__init__" else ""
    return f"{name}({arguments}){returns}"


def _constructor(node):
    """Return the constructor of a class, or None."""
    return next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)


def _markdown(docstring):
    """Return a docstring in Google style as Markdown: its sections become lists."""
    docstring, _, example = docstring.partition("\nExample:\n")
    lines, section = [], False
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields|Warns):", line):
            lines += [f"**{line[:-1]}**", ""]
            section = True
        elif section and (found := re.match(r"    ([\w., |*]+): (.*)", line)):
            lines.append(f"- `{found[1]}`: {_escaped(found[2])}")
        elif section and line.startswith("    "):
            lines.append(f"  {_escaped(line.strip())}" if lines[-1] else f"- {_escaped(line.strip())}")
        else:
            section = section and not line.strip()
            lines.append(_escaped(line))
    if example:
        lines += ["", "**Example**", "", "```pycon", *textwrap.dedent(example).rstrip().splitlines(), "```"]
    return lines


def _escaped(text):
    """Return text of a docstring in which brackets do not become links."""
    return re.sub(r"`[^`]*`|([\[\]<>_*])", lambda found: f"\\{found[1]}" if found[1] else found[0], text)
