"""Makes the pictures of docs/report.md: ``PYTHONPATH=tests:tools .venv/bin/python -m report.screenshots``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from checkpoint_cli.report.draw.page import render
from checkpoint_cli.report.view import report_of
from report.reports import eventful_facts
from support.browser import browser

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SHOTS: tuple[tuple[str, int, int, Literal["light", "dark"], str], ...] = (
    ("report-timeline", 1080, 680, "light", "#timeline"),
    ("report-storage", 1080, 850, "dark", "#goodput"),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder, "profile")) as window:
        page = Path(folder, "report.html")
        page.write_text(render(report_of(eventful_facts())))
        for name, width, height, scheme, start in SHOTS:
            window.show(width, height, scheme)
            window.open(page.as_uri())
            window.run("document.querySelector(arguments[0]).scrollIntoView()", start)
            window.picture(PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
