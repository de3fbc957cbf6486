"""README's moving picture: the skew α of the playground, dragged on its page.

    PYTHONPATH=tools python -m pages.moving build/pages/00_playground.html CHROMIUM

Needs Playwright (extra ``test``). Writes ``notebooks/figures/playground.gif``.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from fedlearn.partition.files import write_whole

from .lessons import NOTEBOOKS

PICTURE = NOTEBOOKS / "figures" / "playground.gif"
SLOW, FAST = 1400, 450  # milliseconds at the ends of the slider, and between
COLORS = 128
MOST = 1_000_000  # bytes
MOVE = """(root, to) => {
  const input = root.querySelector('.fl-row input[aria-label="Skew α"]');
  input.value = to;
  input.dispatchEvent(new Event('input', { bubbles: true }));
  return +input.max;
}"""


def shots(page_file: Path, browser: str) -> list[Image.Image]:
    """The panel at every stop of α, from even to uneven and back."""
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = program.new_page(viewport={"width": 1180, "height": 900})
        page.goto(page_file.absolute().as_uri())
        page.wait_for_function("document.querySelector('.fl-play').dataset.ready")
        page.add_style_tag(content="header { display: none !important }")
        panel = page.locator(".fl-play").first
        last = panel.evaluate(MOVE, 0)
        stops = [*range(last, 0, -1), *range(last)]
        taken: list[Image.Image] = []
        for stop in stops:
            panel.evaluate(MOVE, stop)
            page.wait_for_timeout(150)
            taken.append(Image.open(io.BytesIO(panel.screenshot())))
        program.close()
    return taken


def moving(frames: list[Image.Image]) -> bytes:
    """The frames as one GIF that goes on for ever."""
    rare = Image.Quantize.MAXCOVERAGE  # one vermilion dot is a colour, too
    palette = frames[0].convert("RGB").quantize(COLORS, method=rare)
    flat = [f.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    turn = (len(frames) - 1) // 2
    waits = [SLOW if i in (0, turn + 1) else FAST for i in range(len(flat))]
    out = io.BytesIO()
    flat[0].save(out, "GIF", save_all=True, append_images=flat[1:], duration=waits, loop=0)
    return out.getvalue()


def main(words: list[str]) -> int:
    """Take the pictures, write the file, say how large it is."""
    if len(words) != 2:
        print("usage: python -m pages.moving build/pages/00_playground.html CHROMIUM")
        return 2
    made = moving(shots(Path(words[0]), words[1]))
    if len(made) > MOST:
        print(f"{len(made)} bytes: too large, take fewer colours")
        return 1
    write_whole(PICTURE, made)
    print(f"{PICTURE.name}: {len(made) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
