"""The pages that are served beside the report: the list of runs, one snapshot, and a failure. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from checkpoint_cli.report import formats
from checkpoint_cli.report.draw import frame as shapes
from checkpoint_cli.report.draw.markup import Markup, el
from checkpoint_cli.report.draw.page import LivePage, content, document, run_name
from checkpoint_cli.report.draw.scales import Scale
from checkpoint_cli.report.draw.tables import row, table
from checkpoint_cli.report.history import ShownState, SnapshotLife
from checkpoint_cli.report.reasons import explain_all
from checkpoint_cli.report.view import RunReport
from checkpoint_sidecar.core.heartbeat import INTERVAL_SECONDS
from checkpoint_sidecar.core.log import StoredEntry, Unknown
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.policy import NOT_CHECKED
from checkpoint_sidecar.core.sharing import distinct_bytes

MAX_FILES = 500
"""Number of files of a snapshot that its page lists."""

_HEADS = ("Run", "Progress", "Saved step#", "Training", "Kept#", "Attempts#", "Goodput#")
_SPARK = (120.0, 28.0)
_SILENT = dt.timedelta(seconds=6 * INTERVAL_SECONDS)


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses of the served pages.

    Attributes:
        home: The list of runs.
        run, version: Of a run's URL: its page, and its current version.
        snapshot: Of a run's URL and the id of a snapshot: the page of the snapshot.
    """

    home: str
    run: Callable[[str], str]
    version: Callable[[str], str]
    snapshot: Callable[[str, str], str]


def list_page(reports: Mapping[str, RunReport | str], problems: Mapping[str, str], links: Links) -> str:
    """Return the list of runs.

    Args:
        reports: By URL, the report of a run, or why there is none.
        problems: By URL, why it could not be searched for runs.
    """
    rows = [_listed(url, found, links) for url, found in reports.items()]
    body = [
        el("header", el("p", "Checkpoints", class_="eyebrow"), el("h1", formats.counted(len(reports), "run"))),
        *(el("p", f"{url}: {problem}", class_="trouble") for url, problem in problems.items()),
        el("main", el("section", table("Runs by URL", _HEADS, rows, name="run-table"), class_="runs")),
    ]
    return document("Runs", Markup("".join(body)))


def _listed(url: str, found: RunReport | str, links: Links) -> Markup:
    if isinstance(found, str):
        return el("tr", el("td", el("code", url)), el("td", found, class_="trouble", colspan=str(len(_HEADS) - 1)))
    history, run = found.history, found.history.facts.run
    newest = run.snapshots.get(run.newest or "")
    kept = found.in_state(ShownState.KEPT, ShownState.HELD, ShownState.DAMAGED)
    size = formats.size(distinct_bytes([life.snapshot for life in kept]))
    return row(
        el("span", el("a", run_name(found), href=links.run(url)), el("br"), el("code", url)),
        _spark(found),
        formats.count(newest.step) if newest else "none",
        el("span", _training(found), class_="whole"),
        f"{size} ({formats.count(len(kept))})",
        formats.count(len(history.attempts)),
        formats.percent(found.goodput.share) if found.goodput.total else "",
        numbers=(2, 4, 5, 6),
    )


def _training(report: RunReport) -> str:
    """What the last sign of life says about training."""
    facts, history = report.history.facts, report.history
    if not history.attempts or history.alive_at is None:
        return "not started"
    last = history.attempts[-1]
    if last.ended_at is not None:
        return f"ended {formats.rough_duration((facts.now - last.ended_at).total_seconds())} ago"
    silent = facts.now - history.alive_at
    return "running" if silent < _SILENT else f"silent for {formats.rough_duration(silent.total_seconds())}"


def _spark(report: RunReport) -> Markup:
    """Steps over time, in the size of a word."""
    history = report.history
    if not history.attempts:
        return Markup("")
    width, height = _SPARK
    start = history.attempts[0].started_at.timestamp()
    end = max(attempt.until.timestamp() for attempt in history.attempts)
    x = Scale(start, max(end, start + 1), 2, width - 2)
    y = Scale(0, max((life.snapshot.step for life in history.lives), default=1), height - 2, 2)
    parts = []
    for attempt in history.attempts[-200:]:
        points = [(x(attempt.ready_at.timestamp()), y(attempt.base_step))]
        points += [(x(each.committed_at.timestamp()), y(each.step)) for each in attempt.commits]
        thin = shapes.per_pixel(points, lambda point: point[0], lambda point: point[1])
        parts.append(el("path", d=shapes.path_of(thin), class_="line"))
    return el("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", class_="spark", aria_hidden="true")


def run_page(report: RunReport, version: str, links: Links) -> str:
    """Return the report of a run, which loads itself again when the run has grown."""
    url = report.history.facts.url
    trail = el("nav", el("a", "All runs", href=links.home), class_="trail", aria_label="Trail")
    body = Markup(trail + content(report, lambda identifier: links.snapshot(url, identifier)))
    return document(f"{run_name(report)}: run", body, LivePage(version, links.version(url)))


def snapshot_page(report: RunReport, life: SnapshotLife, manifest: Manifest | str, links: Links) -> str:
    """Return the page of one snapshot.

    Args:
        manifest: Its files, or why they cannot be shown.
    """
    url, snapshot = report.history.facts.url, life.snapshot
    name = run_name(report)
    trail = el(
        "nav",
        el("a", "All runs", href=links.home),
        " / ",
        el("a", name, href=links.run(url)),
        class_="trail",
        aria_label="Trail",
    )
    title = f"Step {formats.count(snapshot.step)}"
    header = el(
        "header", el("p", name, class_="eyebrow"), el("h1", title), el("p", el("code", snapshot.id), class_="url")
    )
    main = el(
        "main",
        _section("facts", "Snapshot", el("dl", *_facts(life, url, links), class_="facts")),
        _section("metrics", "Metrics", _metrics(life)) if snapshot.commit.metrics else None,
        _section("files", "Files", _files(manifest)),
        _section("entries", "Entries of the log about it", _entries(report.history.facts.entries, snapshot.id)),
    )
    return document(f"{title} of {name}", Markup(trail + header + main))


def _section(name: str, title: str, *parts: Markup) -> Markup:
    return el("section", el("h2", title, id=f"{name}-title"), *parts, aria_labelledby=f"{name}-title")


def _facts(life: SnapshotLife, url: str, links: Links) -> Iterable[Markup]:
    snapshot, commit = life.snapshot, life.snapshot.commit
    parent = el("a", el("code", commit.parent), href=links.snapshot(url, commit.parent)) if commit.parent else "none"
    verified = {NOT_CHECKED: "not yet", "Sizes": "by sizes", "Checksums": "by the checksums of all bytes"}
    facts: tuple[tuple[str, str | Markup], ...] = (
        ("State", f"{str(life.state).capitalize()}: {explain_all(life.retire_due or life.reasons)}"),
        ("Committed", f"{formats.moment(snapshot.committed_at)} UTC by attempt {commit.attempt} ({commit.trigger})"),
        ("Parent", parent),
        ("In the lineage", "yes" if life.in_lineage else "no: the newest snapshot does not descend from it"),
        ("Size", f"{formats.size(commit.bytes)} in {formats.counted(commit.files, 'file')}"),
        ("Shared", f"{formats.size(commit.shared_bytes)} of it in earlier snapshots" if commit.shared_bytes else ""),
        ("Saved by", formats.counted(commit.world_size, "rank")),
        ("Saved in", f"{formats.duration(commit.seconds)}; training waited {formats.duration(commit.blocked_seconds)}"),
        ("Verified", verified[snapshot.verified]),
        ("Evidence", snapshot.evidence),
        ("Retired", f"{formats.moment(life.retired_at)} UTC" if life.retired_at else ""),
        ("Purged", f"{formats.moment(life.purged_at)} UTC" if life.purged_at else ""),
        ("Disposition", snapshot.disposition),
        ("Folder", el("code", f"{url}/{commit.path}")),
        ("Manifest", el("code", f"sha256:{commit.manifest_digest}")),
    )
    return (el("div", el("dt", label), el("dd", words)) for label, words in facts if words)


def _metrics(life: SnapshotLife) -> Markup:
    metrics = life.snapshot.commit.metrics.items()
    return table(
        "Metrics at the commit", ["Metric", "Value#"], (row(name, text, numbers=(1,)) for name, text in metrics)
    )


def _files(manifest: Manifest | str) -> Markup:
    if isinstance(manifest, str):
        return el("p", manifest)
    shown = manifest.files[:MAX_FILES]
    left_out = len(manifest.files) - len(shown)
    caption = formats.counted(len(manifest.files), "file") + (f"; {left_out} are left out" if left_out else "")
    rows = (row(each.name, formats.size(each.size), el("code", f"{each.crc32c:08x}"), numbers=(1,)) for each in shown)
    return table(caption, ["Name", "Size#", "CRC32C"], rows)


def _entries(entries: Iterable[StoredEntry], identifier: str) -> Markup:
    about = [entry for entry in entries if getattr(entry.body, "snapshot", "") == identifier]
    rows = (
        row(
            el("span", formats.moment(entry.stored_at), class_="whole"),
            formats.count(entry.number),
            type(entry.body).__name__,
            entry.writer,
            el("span", _details(entry), class_="words"),
            numbers=(1,),
        )
        for entry in about
    )
    return table("Entries, oldest first", ["Time (UTC)", "Entry#", "Kind", "Writer", "Content"], rows)


def _details(entry: StoredEntry) -> str:
    if isinstance(entry.body, Unknown):
        return ""
    fields = msgspec.to_builtins(entry.body)
    hidden = ("snapshot", "path", "manifestDigest", "metrics", "files", "parent")
    return ", ".join(
        f"{name}: {value}" for name, value in fields.items() if name not in hidden and value not in ("", [])
    )


def failure_page(title: str, message: str, links: Links) -> str:
    """Return the page of a request that failed."""
    trail = el("nav", el("a", "All runs", href=links.home), class_="trail", aria_label="Trail")
    return document(title, Markup(trail + el("header", el("h1", title), el("p", message, class_="trouble"))))
