"""Make executed notebooks fit to be stored: readable without a kernel, small, stable in git.

``python tools/freeze.py notebooks/*.ipynb`` drops the live-widget view where a picture
lies beside it, the widget state, and the execution times.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fedlearn.partition.files import write_whole

VIEW = "application/vnd.jupyter.widget-view+json"


def freeze(path: str | Path) -> bool:
    """Rewrite a notebook without what only a running kernel can use.

    Args:
        path: The ``.ipynb`` file. It is replaced at once or not at all.

    Returns:
        Whether anything changed.

    Raises:
        ValueError: If the file is not a notebook of format 4.
    """
    path = Path(path)
    before = path.read_text(encoding="utf-8")
    try:
        notebook = json.loads(before)
    except json.JSONDecodeError as e:
        raise ValueError(f"freeze: {path} is not a notebook ({e}), e.g. notebooks/a.ipynb") from e
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4:
        raise ValueError(f"freeze: {path} is not a notebook of format 4, e.g. notebooks/a.ipynb")
    after = json.dumps(_frozen(notebook), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if after != before:
        write_whole(path, after.encode())
    return after != before


def _frozen(notebook: dict[str, Any]) -> dict[str, Any]:
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        for key in ("execution", "ExecuteTime", "trusted"):
            cell.get("metadata", {}).pop(key, None)
        for output in cell.get("outputs", ()):
            data = output.get("data") or {}
            if VIEW in data and set(data) - {VIEW, "text/plain"}:
                del data[VIEW]
                (output.get("metadata") or {}).pop(VIEW, None)
    return notebook


def main(paths: list[str]) -> int:
    """Freeze each file named; say which ones changed."""
    if not paths:
        print("usage: python tools/freeze.py notebooks/*.ipynb")
        return 2
    for path in paths:
        print(f"{path}: {'frozen' if freeze(path) else 'nothing to do'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
