"""Draws the timeline: steps over wall time, attempts as bands, snapshots as marks, and what the time was spent on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from checkpoint_cli.report import formats
from checkpoint_cli.report.draw import frame as shapes
from checkpoint_cli.report.draw.frame import Frame
from checkpoint_cli.report.draw.markup import Markup, el
from checkpoint_cli.report.draw.scales import Scale, nice_ceiling, ticks, time_ticks
from checkpoint_cli.report.goodput import Activity, Goodput
from checkpoint_cli.report.history import AttemptHistory, RunHistory, ShownState, SnapshotLife

_STRIP = 10.0
_LEAST_BAND = 1.5
_BETWEEN_MARKS = 4.0
_BETWEEN_SIGNS = 9.0


@dataclass(frozen=True, slots=True)
class Plot:
    """The axes of one timeline.

    Attributes:
        rows: Id of the row in the table of snapshots, by snapshot id.
    """

    frame: Frame
    x: Scale
    y: Scale
    rows: Mapping[str, str]

    def at(self, moment: dt.datetime) -> float:
        return self.x(moment.timestamp())


def timeline(history: RunHistory, goodput: Goodput, rows: Mapping[str, str]) -> Markup:
    """Draw the timeline in two widths; empty for a run without an attempt."""
    if not history.attempts:
        return Markup("")
    return shapes.both(partial(_draw, history, goodput, rows))


def _draw(history: RunHistory, goodput: Goodput, rows: Mapping[str, str], width: float) -> Markup:
    narrow = width < 600
    height = 330.0 if narrow else 400.0
    frame = Frame(width, height, 46 if narrow else 60, width - 8, 26, height - 58)
    start, end = _period(history)
    steps = [life.snapshot.step for life in history.lives] or [0]
    low = 0 if min(steps) * 2 < max(steps) + 2 else min(steps)
    top, step = nice_ceiling(max(max(steps) - low, 1), 3 if narrow else 5)
    plot = Plot(
        frame,
        Scale(start.timestamp(), end.timestamp(), frame.left, frame.right),
        Scale(low, low + top, frame.bottom - 4, frame.top + 6),
        rows,
    )
    return shapes.picture(
        frame,
        f"Steps over time, {formats.moment(start)} to {formats.moment(end)} UTC. The tables of snapshots and attempts "
        "below say the same.",
        shapes.group(*_bands(history, plot)),
        shapes.y_axis(frame, ticks(plot.y, 8, formats.axis_value, step=step)),
        shapes.group(*_lines(history, plot)),
        el("g", *_marks(history, plot), class_="marks", role="group", aria_label="Snapshots"),
        el("g", *_signs(history, plot), class_="signs", role="group", aria_label="Evictions and rollbacks"),
        shapes.group(*_strip(goodput, plot)),
        shapes.x_axis(_below(frame), time_ticks(plot.x, frame.time_labels)),
        name="timeline",
    )


def _below(frame: Frame) -> Frame:
    """The frame of the horizontal axis, which lies below the strip of activities."""
    return Frame(frame.width, frame.height, frame.left, frame.right, frame.top, frame.bottom + 20 + _STRIP)


def _period(history: RunHistory) -> tuple[dt.datetime, dt.datetime]:
    start = history.attempts[0].started_at
    ends = [attempt.until for attempt in history.attempts]
    ends += [life.snapshot.committed_at for life in history.lives]
    return start, max(*ends, start + dt.timedelta(seconds=1))


def _bands(history: RunHistory, plot: Plot) -> Iterator[Markup]:
    """Attempts as bands; those too narrow to see are joined with the next one."""
    frame, drawn, shade, labels = plot.frame, plot.frame.left, False, 0
    for attempt in history.attempts:
        right = plot.at(attempt.until)
        if right - drawn < _LEAST_BAND and not attempt.last:
            continue
        shade = not shade
        yield shapes.rect(
            drawn, frame.top, right - drawn, frame.bottom - frame.top, f"band {'odd' if shade else 'even'}"
        )
        label = str(attempt.number)
        if right - drawn > 8 * len(label) + 4:
            labels += 1
            yield shapes.text((drawn + right) / 2, frame.top - 8, label, "label middle")
        drawn = right
    if labels:
        yield shapes.text(0, frame.top - 8, "attempt", "label start")


def _lines(history: RunHistory, plot: Plot) -> Iterator[Markup]:
    chain = history.lineage
    committed = {life.snapshot.id: life.snapshot for life in history.lives}
    for attempt in history.attempts:
        points = [(plot.at(attempt.ready_at), plot.y(attempt.base_step))]
        kept, lost = [*points], list[tuple[float, float]]()
        for snapshot in attempt.commits:
            point = (plot.at(snapshot.committed_at), plot.y(snapshot.step))
            if snapshot.id in chain:
                kept.append(point)
            else:
                lost = lost or [kept[-1]]
                lost.append(point)
        tail = (lost or kept)[-1]
        if tail[0] < (end := plot.at(attempt.ended_at or attempt.until)) - 1:
            yield el("path", d=shapes.path_of([tail, (end, tail[1])]), class_="line tail")
        if len(kept) > 1:
            yield el("path", d=_path(kept), class_="line")
        if len(lost) > 1:
            yield el("path", d=_path(lost), class_="line lost")
        source = committed.get(attempt.attempt.restored or "")
        if attempt.rollback and source is not None:
            origin = (plot.at(source.committed_at), plot.y(source.step))
            yield el("path", d=shapes.path_of([origin, points[0]]), class_="line rollback")


def _path(points: list[tuple[float, float]]) -> str:
    return shapes.path_of(shapes.per_pixel(points, lambda point: point[0], lambda point: point[1]))


def _marks(history: RunHistory, plot: Plot) -> Iterator[Markup]:
    def place(life: SnapshotLife) -> float:
        return plot.at(life.snapshot.committed_at)

    for lives in shapes.clustered(history.lives, place, _BETWEEN_MARKS):
        last = lives[-1]
        yield shapes.mark(place(last), plot.y(last.snapshot.step), lives, plot.rows[last.snapshot.id])


@dataclass(frozen=True, slots=True)
class _Sign:
    at: dt.datetime
    kind: str
    text: str
    target: str


_SIGNS = {
    "eviction": "M-5-4L5-4L0 5z",
    "rollback": "M5 4V1A3 3 0 0 0 2-2H-5M-2-5L-5-2L-2 1",
    "failure": "M0-5V1M0 4V5",
    "restore": "M0 5V-4M-4 0L0-4L4 0",
}


def _signs(history: RunHistory, plot: Plot) -> Iterator[Markup]:
    """Signs below the plot. Of several at one place, the first kind in the table is drawn and all are in its label."""
    order = list(_SIGNS)
    bins: dict[int, list[_Sign]] = {}
    for attempt in history.attempts:
        for sign in _signs_of(attempt):
            bins.setdefault(int(plot.at(sign.at) // _BETWEEN_SIGNS), []).append(sign)
    for _, signs in sorted(bins.items()):
        first = min(signs, key=lambda sign: order.index(sign.kind))
        label = "; ".join(sign.text for sign in signs[:3]) + (f"; {len(signs) - 3} more" if len(signs) > 3 else "")
        yield el(
            "a",
            el("title", label),
            el("circle", r=9, class_="target"),
            el("path", d=_SIGNS[first.kind]),
            href=f"#{first.target}",
            class_=f"sign {first.kind}",
            transform=f"translate({plot.at(first.at):.1f} {plot.frame.bottom + 11:.1f})",
        )


def _signs_of(attempt: AttemptHistory) -> Iterator[_Sign]:
    found, target = attempt.attempt, f"a-{attempt.number}"
    name = f"attempt {attempt.number}"
    if found.eviction is not None and found.eviction_at is not None:
        text = f"Eviction in {name}: {found.eviction.pod.name}, {found.eviction.reason}"
        yield _Sign(found.eviction_at, "eviction", text, target)
    failed = [restore for restore in found.restores if not restore.restored]
    if failed:
        text = f"{formats.counted(len(failed), 'failed restore')} in {name}"
        yield _Sign(attempt.ready_at, "failure", text, target)
    if attempt.rollback:
        step = formats.count(attempt.base_step)
        yield _Sign(attempt.ready_at, "rollback", f"Rollback: {name} continues from step {step}", target)
    elif found.restored:
        yield _Sign(attempt.ready_at, "restore", f"Restore: {name}, step {formats.count(attempt.base_step)}", target)


def _strip(goodput: Goodput, plot: Plot) -> Iterator[Markup]:
    """Draw one strip: the activity that fills most of each pixel."""
    frame, top = plot.frame, plot.frame.bottom + 20
    columns: dict[int, dict[Activity, float]] = {}
    for segment in goodput.segments:
        left, right = plot.at(segment.start), plot.at(segment.end)
        for column in range(int(left), int(right) + 1):
            share = min(right, column + 1) - max(left, column)
            if share > 0:
                amounts = columns.setdefault(column, {})
                amounts[segment.activity] = amounts.get(segment.activity, 0.0) + share
    start, current = frame.left, ""
    for column in sorted(columns):
        winner = max(columns[column].items(), key=lambda item: item[1])[0]
        if winner != current:
            if current:
                yield shapes.rect(start, top, column - start, _STRIP, f"activity {current}")
            start, current = float(max(column, frame.left)), str(winner)
    if current:
        yield shapes.rect(start, top, frame.right - start, _STRIP, f"activity {current}")


def legend(history: RunHistory) -> Markup:
    """Return the meanings of marks and lines, for what the picture holds."""
    present = {life.state for life in history.lives}
    items = [_key(state, str(state).capitalize()) for state in ShownState if state in present]
    if any(attempt.rollback for attempt in history.attempts):
        items.append(_sample("rollback", "Rollback"))
    if any(not life.in_lineage and life.state is not ShownState.REJECTED for life in history.lives):
        items.append(_sample("lost", "Abandoned"))
    items.append(_sample("tail", "No commit"))
    for kind, words in (("eviction", "Eviction"), ("restore", "Restore"), ("failure", "Failed restore")):
        if any(sign.kind == kind for attempt in history.attempts for sign in _signs_of(attempt)):
            items.append(_glyph(f"sign {kind}", _SIGNS[kind], words))
    return el("ul", *items, class_="legend")


def _key(state: ShownState, words: str) -> Markup:
    return _glyph(f"mark {state}", shapes.shape(state), words)


def _glyph(class_: str, path: str, words: str) -> Markup:
    drawing = el("path", d=path, transform="translate(8 8)")
    return el("li", el("svg", el("g", drawing, class_=class_), viewBox="0 0 16 16", aria_hidden="true"), words)


def _sample(kind: str, words: str) -> Markup:
    drawing = el("path", d="M0 8H26", class_=f"line {kind}")
    return el("li", el("svg", drawing, viewBox="0 0 26 16", class_="sample", aria_hidden="true"), words)
