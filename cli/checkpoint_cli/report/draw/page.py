"""Puts the pictures and tables of a run into one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

from checkpoint_cli.report import formats
from checkpoint_cli.report.draw import charts, tables
from checkpoint_cli.report.draw.markup import Markup, el, join
from checkpoint_cli.report.draw.timeline import legend, timeline
from checkpoint_cli.report.goodput import Activity
from checkpoint_cli.report.history import ShownState
from checkpoint_cli.report.view import RunReport
from checkpoint_sidecar.core.policy import NOT_CHECKED, RetentionPolicy
from checkpoint_sidecar.core.sharing import distinct_bytes

_PATTERNS = Markup(
    '<svg class="defs" width="0" height="0" aria-hidden="true"><defs>'
    '<pattern id="hatch-unclear" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="hatch-base"/><rect width="2.5" height="6" class="hatch-lost"/></pattern>'
    '<pattern id="hatch-unsaved" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="hatch-base"/><rect width="3" height="6" class="hatch-training"/></pattern>'
    "</defs></svg>"
)

_LIMITS = (
    (
        "The log records commits, not steps. After the last commit of an attempt, nothing proves how far it trained: "
        "the time from there to its end is an upper bound of the lost work."
    ),
    (
        "Times are the store's, of when an entry was created; some stores round them to a second. A state was copied "
        "at the time of its commit minus the duration of its save, so a slow commit makes saving begin too early."
    ),
    (
        "The end of an attempt is recorded only if it saved on the way out, a pod was evicted through the API, or the "
        "operator noticed it. An eviction is announced before the pod ends: work within its grace period counts as "
        "waiting."
    ),
    "Failed saves leave no duration in the log. The pauses they caused count as training or as lost.",
    (
        "The reasons why snapshots are kept come from the policy in the log, at the time of the report. The operator "
        "may add a quota of the namespace, which the log does not hold."
    ),
    "Storage counts committed snapshots. Files of saves that were never committed are not in the log.",
)


@dataclass(frozen=True, slots=True)
class LivePage:
    """A page that a server shows, and that loads itself again when the version changes.

    Attributes:
        version: Version of its content.
        path: Where the server tells the current version.
    """

    version: str
    path: str


def render(report: RunReport) -> str:
    """Return the page of a run."""
    name = run_name(report)
    return document(f"{name}: run report", content(report))


def run_name(report: RunReport) -> str:
    """Return the name of a run: the owner's, else its URL."""
    owner = report.history.facts.run.owner
    return owner.name if owner else report.history.facts.url


def content(report: RunReport, link: Callable[[str], str] | None = None) -> Markup:
    """Return the content of a run's page.

    Args:
        link: From the id of a snapshot to the address of a page about it; without one, ids are not linked.
    """
    return join(*_body(report, run_name(report), link))


def policy_of_pages(*, live: bool = False) -> str:
    """Return the content security policy: this page's own style and script, and no request except to a live server."""
    style, script = _digest(_asset("page.css")), _digest(_asset("page.js"))
    policy = (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return f"{policy}; connect-src 'self'" if live else policy


def document(title: str, body: Markup, live: LivePage | None = None) -> str:
    """Return a whole page."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = policy_of_pages(live=live is not None)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        el("style", Markup(style)),
    )
    served = {"data_version": live.version, "data_poll": live.path} if live else {}
    page = el("html", head, el("body", body, el("script", Markup(script)), **served), lang="en")
    return f"<!doctype html>\n{page}\n"


@functools.cache
def _asset(name: str) -> str:
    return files("checkpoint_cli.report.draw").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _body(report: RunReport, name: str, link: Callable[[str], str] | None) -> Iterator[Markup]:
    facts = report.history.facts
    yield el("a", "Skip to the tables", href="#snapshots", class_="skip")
    yield _PATTERNS
    yield el(
        "header",
        el("p", "Run report", class_="eyebrow"),
        el("h1", name),
        el("p", el("code", facts.url), class_="url"),
        el("p", _made(report), class_="made"),
    )
    yield el(
        "main",
        _tiles(report),
        *_timeline(report),
        *_goodput(report),
        *_storage(report),
        *_metrics(report),
        _section("snapshots", "Snapshots", _filters(report), tables.snapshots(report, link)),
        _section("attempts", "Attempts", tables.attempts(report)) if report.history.attempts else None,
        _section("policy", "Policy", _policy(report)),
        _section("events", "Events", tables.events(report)),
        _section("limits", "Limits of this report", _limits(report)),
    )


def _made(report: RunReport) -> str:
    facts = report.history.facts
    owner = f"Owner {facts.run.owner}. " if facts.run.owner else ""
    entries = formats.counted(len(facts.entries), "log entry", "log entries")
    return f"{owner}Read from {entries} on {formats.moment(facts.now)} UTC."


def _section(name: str, title: str, *parts: Markup | None) -> Markup:
    return el("section", el("h2", title, id=f"{name}-title"), *parts, id=name, aria_labelledby=f"{name}-title")


def _tiles(report: RunReport) -> Markup:
    return el("dl", *(_tile(*tile) for tile in _figures(report)), class_="tiles")


def _tile(label: str, value: str, detail: str) -> Markup:
    return el("div", el("dt", label), el("dd", el("strong", value), el("span", detail)))


def _figures(report: RunReport) -> Iterator[tuple[str, str, str]]:
    history, goodput = report.history, report.goodput
    run = history.facts.run
    newest = run.snapshots.get(run.newest or "")
    if newest is None:
        yield "Newest saved step", "none", "the run has no commit yet"
    else:
        age = formats.duration((history.facts.now - newest.committed_at).total_seconds())
        reached = _reached(report, newest.step)
        yield "Newest saved step", formats.count(newest.step), f"committed {age} before this report{reached}"
    if goodput.total:
        total = formats.duration(goodput.total)
        yield "Goodput", formats.percent(goodput.share), f"of {total} is training that is saved and kept"
    held = report.in_state(ShownState.KEPT, ShownState.HELD, ShownState.DAMAGED)
    waiting = report.in_state(ShownState.RETIRED)
    kept = formats.size(distinct_bytes([life.snapshot for life in held]))
    detail = formats.counted(len(held), "snapshot")
    yield "Kept", kept, detail + (f"; {formats.count(len(waiting))} more await deletion" if waiting else "")
    unclear, lost = goodput.seconds[Activity.UNCLEAR], goodput.seconds[Activity.LOST]
    if unclear or lost or goodput.lost_steps:
        at_most = f"≤ {formats.duration(lost + unclear)}" if unclear else formats.duration(lost)
        steps = [f"{formats.counted(goodput.lost_steps, 'saved step')} abandoned"] if goodput.lost_steps else []
        steps += [f"about {formats.count(goodput.unclear_steps)} unsaved, at most"] if goodput.unclear_steps else []
        yield "Lost work", at_most, "; ".join(steps) or "after the last commits of attempts"
    elif history.attempts:
        yield "Lost work", "none", "no training was repeated"
    restores = [restore for attempt in history.attempts for restore in attempt.attempt.restores]
    evictions = sum(attempt.attempt.eviction is not None for attempt in history.attempts)
    failed = sum(not restore.restored for restore in restores)
    parts = [formats.counted(sum(restore.restored for restore in restores), "restore")]
    parts += [f"{formats.count(failed)} failed"] if failed else []
    parts += [formats.counted(evictions, "eviction")] if evictions else []
    yield "Attempts", formats.count(len(history.attempts)), ", ".join(parts)


def _reached(report: RunReport, step: int) -> str:
    """Say how far training was at the last heartbeat, if that is beyond the newest commit."""
    facts = report.history.facts
    beat = facts.heartbeat
    if beat is None or beat.attempt != facts.run.highest_attempt or beat.step <= step:
        return ""
    return f"; the last heartbeat was at step {formats.count(beat.step)}"


def _timeline(report: RunReport) -> Iterator[Markup]:
    drawn = timeline(report.history, report.goodput, report.row_ids)
    if drawn:
        note = (
            "Bands are attempts. The strip below the picture shows what the time was spent on, in the colors of the "
            "next picture. Each mark leads to its row."
        )
        figure = el("figure", drawn, el("figcaption", legend(report.history), el("p", note)))
        yield _section("timeline", "Steps over time", _filters(report), figure)


def _goodput(report: RunReport) -> Iterator[Markup]:
    bar = charts.goodput_bar(report.goodput)
    if bar:
        yield _section("goodput", "Where the time went", el("figure", bar), tables.goodput(report.goodput))


def _storage(report: RunReport) -> Iterator[Markup]:
    chart = charts.storage_chart(report.storage)
    if not chart:
        return
    keys = el("ul", _swatch("live", "Restorable"), _swatch("retired", "Awaiting deletion"), class_="legend")
    words = el("p", _forecast(report))
    yield _section(
        "storage",
        "Storage",
        el("figure", chart, el("figcaption", keys, words)),
        el("details", el("summary", "Storage as a table"), tables.storage(report.storage)),
    )


def _swatch(kind: str, words: str) -> Markup:
    return el("li", el("span", class_=f"swatch {kind}"), words)


def _forecast(report: RunReport) -> str:
    found = report.storage.forecast
    if found is None:
        return "No forecast: the run has ended, or it has too few commits within an attempt."
    span = (found.points[-1].at - found.points[0].at).total_seconds()
    retention = report.history.facts.run.policy.retention
    rule = "under the policy" if retention and not retention.dry_run else "without any deletion"
    return (
        f"Forecast {rule}: {formats.size(found.points[-1].total)} in {formats.duration(span)}, at most "
        f"{formats.size(found.peak)}, if a snapshot of {formats.size(found.bytes)} is committed every "
        f"{formats.duration(found.interval)} as lately, is "
        "verified, and is not among the best. It has its own scale of time."
    )


def _metrics(report: RunReport) -> Iterator[Markup]:
    series = report.metrics.series
    if not series:
        return
    figures = [
        el(
            "figure",
            el("figcaption", el("h3", each.name), el("p", _rule(each.rule is not None, each.name, report))),
            charts.metric_chart(each, report.row_ids),
            el("details", el("summary", f"{each.name} as a table"), tables.metric(each)),
        )
        for each in series
    ]
    left_out = report.metrics.left_out
    more = el("p", f"{formats.counted(left_out, 'further metric is', 'further metrics are')} not drawn.")
    yield _section("metrics", "Metrics", el("div", *figures, class_="grid"), more if left_out else None)


def _rule(ruled: bool, name: str, report: RunReport) -> str:
    retention = report.history.facts.run.policy.retention
    if not ruled or retention is None:
        return "The policy does not use it."
    rule = next(rule for rule in retention.keep_best if rule.metric == name)
    amount = "smallest" if rule.mode == "Min" else "largest"
    return f"The policy keeps the {formats.counted(rule.count, amount, amount)}; the ring marks the best."


def _filters(report: RunReport) -> Markup:
    """Buttons that the script shows: without it they could do nothing."""
    present = [state for state in ShownState if report.in_state(state)]
    buttons = [
        el(
            "button",
            el("span", class_=f"dot {state}"),
            f"{str(state).capitalize()} ",
            el("b", formats.count(len(report.in_state(state)))),
            type="button",
            aria_pressed="true",
            data_filter=str(state),
        )
        for state in present
    ]
    return el("div", *buttons, class_="filters", role="group", aria_label="Show snapshots by state", hidden=True)


def _policy(report: RunReport) -> Markup:
    policy = report.history.facts.run.policy
    save = policy.save
    saves = [f"every {formats.counted(save.every_steps, 'step')}" if save.every_steps else ""]
    saves += [f"every {formats.duration(save.every_seconds)}" if save.every_seconds else ""]
    saves += ["on termination" if save.on_termination else ""]
    items = [("Saves", ", ".join(part for part in saves if part) or "on request only")]
    items.append(("Retention", _retention(policy.retention)))
    items.append(("Existing steps", {"Never": "an error", "Skip": "skipped", "Replace": "replaced"}[policy.overwrite]))
    verify = {NOT_CHECKED: "not compared", "Sizes": "sizes compared", "Checksums": "checksums compared"}
    items.append(("Restores", f"{verify[policy.restore.verify]}, at most {policy.restore.max_fallback} fallbacks"))
    configured = report.history.facts.run.configured
    note = None if configured else el("p", "No operator has configured this run: these are the library's defaults.")
    return join(el("dl", *(el("div", el("dt", a), el("dd", b)) for a, b in items), class_="facts"), note or Markup(""))


def _retention(retention: RetentionPolicy | None) -> str:
    if retention is None:
        return "none: every snapshot is kept"
    parts = [f"the {formats.count(retention.keep_last)} newest" if retention.keep_last else ""]
    parts += [f"one per {formats.counted(retention.keep_every_steps, 'step')}" if retention.keep_every_steps else ""]
    parts += [f"one per {formats.duration(retention.keep_every_seconds)}" if retention.keep_every_seconds else ""]
    parts += [f"the {formats.count(best.count)} best by {best.metric}" for best in retention.keep_best]
    rules = ", ".join(part for part in parts if part) or "every snapshot"
    limits = [f"not older than {formats.duration(retention.max_age_seconds)}" if retention.max_age_seconds else ""]
    limits += [f"at most {formats.size(retention.max_total_bytes)}" if retention.max_total_bytes else ""]
    limits += [f"deleted {formats.duration(retention.grace_seconds)} after being retired"]
    limits += ["dry run: nothing is deleted" if retention.dry_run else ""]
    return f"keep {rules}; {', '.join(part for part in limits if part)}"


def _limits(report: RunReport) -> Markup:
    run = report.history.facts.run
    items = [*_LIMITS]
    if report.history.alive_at is not None:
        items.append(
            f"Time is counted up to the last sign of life of training: {formats.moment(report.history.alive_at)} UTC."
        )
    if run.unknown_critical:
        items.append(f"The log holds entries of the kind {run.unknown_critical}, which this version does not know.")
    return el("ul", *(el("li", item) for item in items), class_="notes")
