"""README's pictures of a page and a report: what Chromium shows of them.

    PYTHONPATH=. python tests/screenshots.py PAGE/ REPORT.html

writes docs/page.png and docs/report.png; the two are made by tools.page and tools.report.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import browser
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
MOST_BYTES = 200_000


def save(driver, name: str, height: int) -> None:
    """Save the top of what is shown, in few enough colours for README."""
    browser.view(driver, size=(1100, height))
    time.sleep(1)  # the layout of the new size
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)
    size = (DOCS / name).stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"docs/{name}: {size} bytes are more than {MOST_BYTES}")


def main(page: Path, report: Path) -> None:
    with browser.chromium() as driver:
        with browser.served(page) as address:
            driver.get(f"{address}#seed=5&other=7")
            browser.wait(driver, "document.body.dataset.drawn")
            save(driver, "page.png", 860)
        driver.get(report.resolve().as_uri())
        save(driver, "report.png", 1000)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
