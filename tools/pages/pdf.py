"""A page as PDF, printed by the machine's own Chromium, Chrome or Edge."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from fedlearn.partition.files import write_whole

SIZE = {"": (950, 1340), "slides": (1280, 860)}  # of the window: what the paper shows, see page.css
PATIENCE_S = 120


def printed(browser: str, page: Path, slides: bool = False) -> Path:
    """Print a page beside it, as a text or as slides; the PDF's path.

    Raises:
        ValueError: If the browser printed nothing; with what it said.
    """
    how = "slides" if slides else ""
    path = page.with_name(f"{page.stem}{'-slides' * slides}.pdf")
    width, height = SIZE[how]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "page.pdf"
        command = [
            *(browser, "--headless", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer"),
            *(["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []),  # containers
            f"--user-data-dir={folder}/profile",
            f"--window-size={width},{height}",
            "--virtual-time-budget=10000",  # panels draw themselves after the page has loaded
            f"--print-to-pdf={made}",
            page.absolute().as_uri() + ("#slides" if slides else ""),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        if not made.is_file():
            raise ValueError(f"pdf: {browser} printed nothing of {page.name}: {ran.stderr[-500:]}")
        write_whole(path, made.read_bytes())
    return path
