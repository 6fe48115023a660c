"""Makes the pictures of docs/report.md: ``PYTHONPATH=tests:tools .venv/bin/python -m report.screenshots``."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from checkpoint_cli.report.draw.page import render
from checkpoint_cli.report.view import report_of
from report.reports import eventful_facts
from report.test_ui import Clocked, Pages, Stores, put_as_of, serving
from support.browser import browser
from support.training_runs import TrainingRun, eventful_run

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
        window.show(1080, 420, "light")
        with several_runs() as pages:
            window.open(pages.server.address)
            window.picture(PICTURES / "ui-list.png")


@contextmanager
def several_runs() -> Iterator[Pages]:
    """A bucket with three runs: one trains, one has been silent for hours, one has just begun."""
    stores, now = Stores(), dt.datetime.now(dt.UTC)
    run, _, _ = eventful_run()
    young = TrainingRun().start(restores=False).train(1200)
    for name, history, age in (
        ("pretrain/llama-7b", run.history, 15),
        ("pretrain/llama-7b-baseline", eventful_run()[0].history, 9000),
        ("finetune/code", young.history, 40),
    ):
        store = stores.run(f"s3://training/{name}")
        assert isinstance(store, Clocked)
        put_as_of(store, history.entries, now - dt.timedelta(seconds=age))
    stores.mention()
    with serving(stores, run.history, ["s3://training"]) as pages:
        yield pages


if __name__ == "__main__":
    main()
