"""Execute the notebooks and store their outputs: `python docs/notebooks/execute.py [NAME.ipynb ...]`.

The cells are plain Python, so no kernel is needed. Kept are what a cell prints and the value of its last line: a PIL image as a
picture, anything else as text.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).resolve().parent


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells of a notebook in order and put their outputs into it.

    Args:
        notebook: content of an .ipynb file, format 4; its outputs and execution counts are replaced.

    Returns:
        the variables at the end, by name.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(cells, 1):
        tree = ast.parse("".join(cell["source"]), f"cell {count}")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed, value = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {count}", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
        cell["execution_count"], cell["outputs"] = count, []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": text})
        if value is not None:
            data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
            if isinstance(value, Image.Image):
                data = {"image/png": _png(value), "text/plain": [f"picture of {value.width} x {value.height} pixels"]}
            result = {"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"}
            cell["outputs"].append(result)
    return names


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def main(files: list[Path]) -> None:
    """Execute notebooks and write them with their outputs."""
    for path in files:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        execute(notebook)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")))
