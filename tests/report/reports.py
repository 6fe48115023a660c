"""Reports of the runs in ``support.training_runs``, and a parser that shows what a page is made of."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from html.parser import HTMLParser

from checkpoint_cli.report.draw.page import render
from checkpoint_cli.report.facts import RunFacts
from checkpoint_cli.report.view import RunReport, report_of
from support.builders import History
from support.training_runs import eventful_run

URL = "s3://training/llama"


def facts_of(history: History, *, after: float = 60.0) -> RunFacts:
    """A report is made ``after`` seconds."""
    return RunFacts(URL, history.run, tuple(history.entries), history.now + dt.timedelta(seconds=after))


def report(history: History) -> RunReport:
    return report_of(facts_of(history))


def page_of(history: History) -> str:
    return render(report(history))


def eventful_facts() -> RunFacts:
    run, beat, at = eventful_run()
    return RunFacts(URL, run.run, run.entries, at + dt.timedelta(seconds=4), beat, at)


class Page(HTMLParser):
    """The elements of a page.

    Attributes:
        elements: Name and attributes of each, in order.
        texts: All text outside of scripts and styles.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._quiet = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self._quiet = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._quiet = self._quiet and tag not in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.texts.append(data)

    @property
    def names(self) -> Counter[str]:
        return Counter(name for name, _ in self.elements)

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]

    @property
    def text(self) -> str:
        return " ".join(self.texts)
