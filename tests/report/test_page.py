"""The page is one file that asks for nothing, quotes nothing unescaped, and says each picture in a table, too."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings

from checkpoint_cli.report.draw.markup import Markup, el, escape
from checkpoint_cli.report.draw.page import render
from checkpoint_cli.report.facts import RunFacts
from checkpoint_cli.report.reasons import explain
from checkpoint_cli.report.view import MAX_ROWS, report_of
from checkpoint_sidecar.core.log import EvictionNoticed, Owner, PodIdentity
from checkpoint_sidecar.core.policy import KeepBest, Policy, RetentionPolicy
from checkpoint_sidecar.core.replay import replay
from checkpoint_sidecar.core.retention import RetentionReason
from core.strategies import stories
from report.reports import URL, Page, eventful_facts, page_of
from support.builders import History
from support.longlogs import long_log

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'`${x}{{x}}</title></style>]]>\u202e\x00"
EVERYTHING = Policy(retention=RetentionPolicy(keep_every_steps=1, keep_best=(KeepBest("loss", "Min", 10),)))


@functools.cache
def eventful_page() -> str:
    return render(report_of(eventful_facts()))


def long_facts(count: int, policy: Policy | None) -> RunFacts:
    entries = tuple(entry.decode() for entry in long_log(count, policy=policy))
    return RunFacts(URL, replay(entries), entries, entries[-1].stored_at)


def hostile(word: str) -> History:
    """A run in which everything that a writer may choose is ``word``."""
    name = re.sub(r"[/\s\x00]", "|", word)
    history = History(Owner(name[:128], name[:128], name[:253]))
    history.configured(retention=RetentionPolicy(keep_best=(KeepBest(word[:64]),)), uid=word[:128])
    history.started(pods=(PodIdentity(word[:253], word[:64]),))
    for step in (1, 2, 3):
        history.committed(step, metrics={word[:64]: f"0.{step}", "other": word[:64]})
    history.save_failed(4, message=word)
    history.append(EvictionNoticed(1, PodIdentity(word[:253], word[:64]), word))
    history.retired(1, reasons=(word,))
    history.found_damaged(2)
    history.rollback(3, request=word[:128])
    history.save_requested(word[:128], reason=word)
    history.started()
    return history.restored(message=word, missing=(word,))


def test_nothing_that_the_log_quotes_becomes_markup() -> None:
    harmless, page = Page(page_of(hostile("x" * len(HOSTILE)))), Page(page_of(hostile(HOSTILE)))
    assert page.names == harmless.names
    assert page.names["script"] == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "alert(1)" in page.text
    assert "\u202e" not in page.text
    assert "\x00" not in page.text


def test_an_address_is_quoted_like_everything_else() -> None:
    page = Page(render(report_of(replace(eventful_facts(), url=f"s3://{HOSTILE}"))))
    assert page.names == Page(eventful_page()).names


def test_text_is_escaped_once_and_markup_never() -> None:
    assert el("p", "a<b", Markup("<i>c</i>"), title='"&') == '<p title="&quot;&amp;">a&lt;b<i>c</i></p>'
    assert escape("\ud800 \x1b[31m") == "\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}[31m"


def test_the_page_asks_for_nothing() -> None:
    page = Page(eventful_page())
    assert {name for name in page.names if name in ("img", "iframe", "object", "embed", "base", "form", "use")} == set()
    assert [value for value in page.values("href") if not value.startswith("#")] == ["data:,"]
    assert page.values("src") == page.values("action") == page.values("style") == []
    assert not re.search(r"@import|url\((?!#)|https?://", eventful_page())


def test_the_policy_of_the_page_allows_its_own_style_and_script_only() -> None:
    html = eventful_page()
    (policy,) = [v["content"] for _, v in Page(html).elements if v.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for kind in ("style", "script"):
        content = html.partition(f"<{kind}>")[2].partition(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}


@pytest.mark.parametrize("facts_of", [eventful_facts, lambda: long_facts(6000, None)], ids=["eventful", "long"])
def test_every_mark_leads_to_a_row_and_ids_are_unique(facts_of: Callable[[], RunFacts]) -> None:
    page = Page(render(report_of(facts_of())))
    identifiers = page.values("id")
    assert len(identifiers) == len(set(identifiers))
    targets = {value.removeprefix("#") for value in page.values("href") if value.startswith("#")}
    assert targets <= {*identifiers}


def test_every_picture_has_a_name_and_every_table_a_caption() -> None:
    page = Page(eventful_page())
    pictures = [attributes for name, attributes in page.elements if "picture" in attributes.get("class", "")]
    assert len(pictures) == 3 * 2 + 3
    assert all(picture["aria-label"] and picture["role"] == "group" for picture in pictures)
    others = [a for name, a in page.elements if name == "svg" and "picture" not in a.get("class", "")]
    assert all(attributes["aria-hidden"] == "true" for attributes in others)
    # One for each metric, and: time, storage, snapshots, attempts, events.
    assert page.names["table"] == page.names["caption"] == 3 + 5
    assert page.names["title"] == 1 + page.names["a"] + sum("share" in a.get("class", "") for _, a in page.elements) - 1


def test_the_page_says_why_each_snapshot_is_kept() -> None:
    page = Page(eventful_page())
    for words in (
        "the newest; the newest verified",
        "among the newest (keepLast)",
        "first of its interval of steps (keepEverySteps)",
        "among the best (keepBest) by eval/loss",
        "a user holds it",
        "committed by an attempt that a later one had replaced",
        "abandoned by a rollback",
        "no rule keeps it",
    ):
        assert words in page.text


def test_every_reason_of_the_policy_has_a_sentence() -> None:
    assert [reason for reason in RetentionReason if explain(reason) == reason] == []
    assert explain("Later") == "Later"


def test_the_page_says_how_far_training_was_at_the_last_heartbeat() -> None:
    assert "the last heartbeat was at step 11,561" in Page(eventful_page()).text


def test_the_story_names_the_events_of_the_run() -> None:
    text = Page(eventful_page()).text
    for words in (
        "Attempt 2 restored step 2440",
        "A rollback to step 7000",
        "Pod llama-0 of attempt 4 is evicted: EvictionByEvictionAPI",
        "Attempt 5 could not restore step 9000",
        "Attempt 4 could not save step 8600 (2 failures in a row): write part 3",
    ):
        assert words in text


@pytest.mark.parametrize("policy", [None, EVERYTHING], ids=["most are purged", "all are kept"])
def test_a_run_of_ten_thousand_snapshots_fits_into_two_megabytes(policy: Policy | None) -> None:
    facts = long_facts(50_300 if policy is None else 20_300, policy)
    report = report_of(facts)
    assert len(report.history.lives) >= 10_000
    assert len(report.rows) <= MAX_ROWS + 200
    assert {life.snapshot.id for row in report.rows for life in row.lives} == {*facts.run.snapshots}
    assert len(render(report).encode()) < 2_000_000


@pytest.mark.parametrize("history", [History(None), History(), History().started()], ids=["none", "claimed", "started"])
def test_a_run_without_snapshots_has_a_page(history: History) -> None:
    assert "Newest saved step" in page_of(history)


@given(stories())
@settings(max_examples=50)
def test_any_log_has_a_page(history: History) -> None:
    page = Page(page_of(history))
    assert page.names["html"] == 1
    assert "NaN" not in page.text
