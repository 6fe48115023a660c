"""Draws the tables of a report: snapshots, attempts, events, and the equivalents of the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from checkpoint_cli.report import formats
from checkpoint_cli.report.draw.markup import Markup, el
from checkpoint_cli.report.goodput import Activity, Goodput
from checkpoint_cli.report.history import AttemptHistory, ShownState
from checkpoint_cli.report.metrics import MetricSeries
from checkpoint_cli.report.reasons import explain_all
from checkpoint_cli.report.storage import Storage, StoredBytes
from checkpoint_cli.report.view import RunReport, SnapshotRow
from checkpoint_sidecar.core.best import metric_value
from checkpoint_sidecar.core.policy import NOT_CHECKED
from checkpoint_sidecar.core.run import Snapshot, SnapshotState
from checkpoint_sidecar.core.sharing import distinct_bytes

_MAX_POINTS = 60
_MAX_COLUMNS = 2
_MAX_ATTEMPTS = 300

ACTIVITIES: dict[Activity, str] = {
    Activity.TRAINING: "Training that the newest snapshot holds. Each part is proven by a commit.",
    Activity.UNSAVED: "Training since the newest commit, up to the last heartbeat; not saved yet.",
    Activity.SAVING: "Training stood still while its state was copied. Uploads in the background are not counted.",
    Activity.RESTORING: "From the start of an attempt to the end of its restore.",
    Activity.WAITING: "From the recorded end of an attempt to the start of the next one.",
    Activity.UNCLEAR: "Lost or waiting: after the last commit of an attempt whose end is not in the log. "
    "The longest time between two of its commits bounds it; the rest counts as waiting.",
    Activity.LOST: "Training that a rollback or a fallback abandoned, or that was not saved before a recorded end.",
}


def table(caption: str, heads: Sequence[str], rows: Iterable[Markup], *, name: str = "") -> Markup:
    """Return a table that scrolls sideways where the screen is narrow. A head ending in ``#`` is right-aligned."""
    columns = [
        el("th", head.rstrip("#"), scope="col", class_="number" if head.endswith("#") else None) for head in heads
    ]
    content = el(
        "table",
        el("caption", caption),
        el("thead", el("tr", *columns)),
        el("tbody", *rows),
        id=name or None,
    )
    return el("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)


def row(*cells: str | Markup | None, numbers: Iterable[int] = (), **attributes: str | None) -> Markup:
    """Return a table row; the columns in ``numbers`` are right-aligned."""
    right = set(numbers)
    return el(
        "tr",
        *(el("td", cell, class_="number" if index in right else None) for index, cell in enumerate(cells)),
        **attributes,
    )


def snapshots(report: RunReport, link: Callable[[str], str] | None = None) -> Markup:
    """Return the table of snapshots, newest first; ``link`` gives the address of a snapshot's own page."""
    ruled = [series.name for series in report.metrics.series if series.rule]
    metrics = (ruled or [series.name for series in report.metrics.series])[:_MAX_COLUMNS]
    heads = ["Step#", "State", "Why", "Size#", "Committed (UTC)", "Verified", "Attempt#", *(f"{m}#" for m in metrics)]
    return table(
        "Snapshots, newest first",
        [*heads, "Id"],
        (_snapshot(found, metrics, link) for found in report.rows),
        name="snapshot-table",
    )


def _snapshot(found: SnapshotRow, metrics: Sequence[str], link: Callable[[str], str] | None) -> Markup:
    first, life = found.lives[0].snapshot, found.life
    snapshot, commit = life.snapshot, life.snapshot.commit
    several = len(found.lives) > 1
    step = formats.count(snapshot.step)
    values = [_metric(snapshot, name) for name in metrics]
    return row(
        f"{formats.count(first.step)} to {step}" if several else step,
        el("span", _state(life.snapshot.state, life.state), class_=f"state {life.state}"),
        el("span", _why(found), class_="words"),
        formats.size(distinct_bytes([each.snapshot for each in found.lives])),
        f"{formats.moment(first.committed_at)} to {formats.moment(snapshot.committed_at)}"
        if several
        else el("span", formats.moment(snapshot.committed_at), class_="whole"),
        "" if several else _verified(found),
        str(commit.attempt)
        if first.commit.attempt == commit.attempt
        else f"{first.commit.attempt} to {commit.attempt}",
        *("" if several else value for value in values),
        f"{len(found.lives)} snapshots" if several else _identifier(snapshot.id, link),
        numbers=(0, 3, 6, *range(7, 7 + len(metrics))),
        id=found.id,
        data_state=str(life.state),
    )


def _metric(snapshot: Snapshot, name: str) -> str:
    exact = metric_value(snapshot, name)
    return snapshot.commit.metrics.get(name, "") if exact is None else formats.value(float(exact))


def _identifier(identifier: str, link: Callable[[str], str] | None) -> Markup:
    code = el("code", identifier)
    return el("a", code, href=link(identifier)) if link else code


def _state(stored: SnapshotState, shown: ShownState) -> str:
    return "Purging" if stored is SnapshotState.PURGING else str(shown).capitalize()


def _why(found: SnapshotRow) -> str:
    life = found.life
    parts = []
    if len(found.lives) > 1:
        reasons = dict.fromkeys(reason for each in found.lives for reason in each.reasons)
        parts.append(explain_all(tuple(reasons)))
    elif life.retire_due:
        parts.append(f"will be retired: {explain_all(life.retire_due)}")
    else:
        parts.append(explain_all(life.reasons))
    if not life.in_lineage and life.state is not ShownState.REJECTED and "Superseded" not in life.reasons:
        parts.append("abandoned by a rollback")
    if life.state is ShownState.DAMAGED and life.snapshot.evidence:
        parts.append(life.snapshot.evidence)
    return "; ".join(part for part in parts if part)


def _verified(found: SnapshotRow) -> str:
    level = found.life.snapshot.verified
    return {NOT_CHECKED: "not yet", "Sizes": "sizes", "Checksums": "checksums"}[level]


def attempts(report: RunReport) -> Markup:
    """Return the table of attempts, newest first."""
    shown = report.history.attempts[-_MAX_ATTEMPTS:]
    left_out = len(report.history.attempts) - len(shown)
    caption = "Attempts, newest first" + (f"; {formats.count(left_out)} older ones are left out" if left_out else "")
    heads = [
        "Attempt#",
        "Started (UTC)",
        "Lasted#",
        "Began at",
        "Restore#",
        "Commits#",
        "Last commit#",
        "Ranks#",
        "End",
    ]
    return table(caption, heads, (_attempt(found) for found in reversed(shown)), name="attempt-table")


def _attempt(found: AttemptHistory) -> Markup:
    restores = found.attempt.restores
    failed = sum(not restore.restored for restore in restores)
    seconds = sum(restore.seconds for restore in restores if restore.restored)
    took = formats.duration(seconds) if any(restore.restored for restore in restores) else ""
    ended = found.ended_at or found.until
    return row(
        str(found.number),
        el("span", formats.moment(found.started_at), class_="whole"),
        formats.duration((ended - found.started_at).total_seconds()),
        el("span", _beginning(found), class_="whole"),
        f"{took}{', ' if took and failed else ''}{f'{failed} failed' if failed else ''}",
        formats.count(len(found.commits)),
        f"step {formats.count(found.commits[-1].step)}" if found.commits else "none",
        formats.count(found.attempt.started.world_size),
        el("span", _ending(found), class_="words"),
        numbers=(0, 2, 4, 5, 6, 7),
        id=f"a-{found.number}",
    )


def _beginning(found: AttemptHistory) -> str:
    if found.attempt.restored:
        return f"step {formats.count(found.base_step)}{', rolled back' if found.rollback else ''}"
    return f"step {formats.count(found.base_step)}, without a restore" if found.base_step else "step 0"


def _ending(found: AttemptHistory) -> str:
    eviction = found.attempt.eviction
    words = str(found.end.value)
    return f"{words}: {eviction.pod.name}, {eviction.reason}" if eviction else words


def goodput(found: Goodput) -> Markup:
    """Return the table of the run's time: an equivalent of the bar, and how each row is known."""
    return table(
        "The run's time",
        ["Activity", "Time#", "Share#", "Meaning"],
        (
            row(
                el("span", el("span", class_=f"swatch {activity}"), str(activity).capitalize(), class_="whole"),
                formats.duration(found.seconds[activity]),
                formats.percent(found.seconds[activity] / found.total) if found.total else "",
                el("span", words, class_="words"),
                numbers=(1, 2),
            )
            for activity, words in ACTIVITIES.items()
            if found.seconds[activity] or activity is Activity.TRAINING
        ),
    )


def storage(found: Storage) -> Markup:
    """Return the table of bytes over time and in the forecast."""
    forecast = found.forecast.points if found.forecast else ()
    rows = [*_amounts(_sampled(found.points), ""), *_amounts(_sampled(forecast), "forecast")]
    return table("Bytes in the store", ["Time (UTC)", "Restorable#", "Awaiting deletion#", "Kind"], rows)


def _amounts(points: Iterable[StoredBytes], kind: str) -> Iterator[Markup]:
    for point in points:
        yield row(
            el("span", formats.moment(point.at), class_="whole"),
            formats.size(point.live),
            formats.size(point.retired),
            kind or "measured",
            numbers=(1, 2),
        )


def _sampled(points: Sequence[StoredBytes]) -> Sequence[StoredBytes]:
    if len(points) <= _MAX_POINTS:
        return points
    chosen = sorted({round(index * (len(points) - 1) / (_MAX_POINTS - 1)) for index in range(_MAX_POINTS)})
    return [points[index] for index in chosen]


def metric(series: MetricSeries) -> Markup:
    """Return the table of one metric: its kept snapshots, else the newest ones."""
    kept = [point for point in series.points if point.kept] or [*series.points]
    rows = (
        row(
            formats.count(point.step),
            formats.value(point.value),
            "best" if point is series.best else "kept as one of the best" if point.best_for else str(point.life.state),
            numbers=(0, 1),
        )
        for point in reversed(kept[-_MAX_POINTS:])
    )
    return table(f"{series.name} of kept snapshots, newest first", ["Step#", f"{series.name}#", ""], rows)


def events(report: RunReport) -> Markup:
    """Return the table of notable events, newest first."""
    left_out = report.story.left_out
    caption = "Events, newest first" + (f"; {formats.count(left_out)} older ones are left out" if left_out else "")
    return table(
        caption,
        ["Time (UTC)", "Entry#", "Kind", "Event"],
        (
            row(
                el("span", formats.moment(event.at), class_="whole"),
                formats.count(event.number),
                event.kind,
                el("span", event.text, class_="words trouble" if event.trouble else "words"),
                numbers=(1,),
            )
            for event in report.story.events
        ),
    )
