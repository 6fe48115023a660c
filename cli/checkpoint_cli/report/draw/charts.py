"""Draws the goodput bar, storage over time with its forecast, and metrics by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from checkpoint_cli.report import formats
from checkpoint_cli.report.draw import frame as shapes
from checkpoint_cli.report.draw.frame import Frame
from checkpoint_cli.report.draw.markup import Markup, el
from checkpoint_cli.report.draw.scales import Scale, Tick, nice_ceiling, nice_step, ticks, time_ticks
from checkpoint_cli.report.goodput import Activity, Goodput
from checkpoint_cli.report.metrics import MetricPoint, MetricSeries
from checkpoint_cli.report.storage import Storage, StoredBytes

_METRIC_WIDTH = 440.0
_BETWEEN_POINTS = 5.0


def goodput_bar(goodput: Goodput) -> Markup:
    """Draw the shares of the run's time as one bar; the table beside it says the same."""
    return shapes.both(partial(_bar, goodput)) if goodput.total else Markup("")


def _bar(goodput: Goodput, width: float) -> Markup:
    frame = Frame(width, 46, 0, width, 0, 30)
    parts: list[Markup] = []
    x = 0.0
    for activity in Activity:
        share = goodput.seconds[activity] / goodput.total
        if not share:
            continue
        extent = share * width
        label = f"{str(activity).capitalize()}: {formats.percent(share)}, {formats.duration(goodput.seconds[activity])}"
        parts.append(
            el(
                "g",
                el("title", label),
                shapes.rect(x, 0, max(extent - 1.5, 0.75), 30, f"activity {activity}"),
                tabindex="0",
                role="img",
                aria_label=label,
                class_="share",
            )
        )
        if extent > 46:
            parts.append(shapes.group(shapes.text(x + 1, 44, formats.percent(share), "label start strong")))
        x += extent
    return shapes.picture(frame, "Shares of the run's time", *parts, name="bar")


def storage_chart(storage: Storage) -> Markup:
    """Draw the bytes in the store over time; empty for a run that never had a snapshot."""
    return shapes.both(partial(_storage, storage)) if storage.points else Markup("")


def _storage(storage: Storage, width: float) -> Markup:
    narrow = width < 600
    height = 220.0 if narrow else 250.0
    frame = Frame(width, height, 58 if narrow else 70, width - 8, 22, height - 26)
    forecast = storage.forecast
    split = frame.left + (frame.right - frame.left) * (0.7 if forecast else 1.0)
    end = forecast.points[0].at if forecast else storage.points[-1].at
    x = Scale(storage.points[0].at.timestamp(), max(end, storage.points[-1].at).timestamp(), frame.left, split)
    peak = max(point.total for point in (*storage.points, *(forecast.points if forecast else ())))
    unit = 1024.0 ** max((n for n in range(7) if 1024**n <= max(peak, 1)), default=0)
    top, step = nice_ceiling(max(peak, 1) / unit, 4)
    y = Scale(0, top * unit, frame.bottom, frame.top + 4)
    last = StoredBytes(max(end, storage.points[-1].at), storage.points[-1].live, storage.points[-1].retired)
    parts = [
        shapes.y_axis(frame, ticks(y, 8, lambda value: formats.size(round(value)), step=step * unit)),
        shapes.group(*_areas([*storage.points, last], x, y, frame, "")),
    ]
    labels = [
        tick
        for tick in time_ticks(x, max(int((split - frame.left) / (64 if narrow else 86)), 2))
        if tick.place < split - 24
    ]
    if forecast:
        ahead = Scale(forecast.points[0].at.timestamp(), forecast.points[-1].at.timestamp(), split, frame.right)
        parts.append(shapes.group(*_areas(forecast.points, ahead, y, frame, " forecast")))
        parts.append(
            shapes.group(
                shapes.line(split, frame.top - 6, split, frame.bottom, "now"),
                shapes.text(split + 5, frame.top - 6, "forecast", "label start"),
            )
        )
        span = forecast.points[-1].at - forecast.points[0].at
        labels.append(Tick(frame.right, f"+{formats.rough_duration(span.total_seconds())}"))
    parts.append(shapes.x_axis(frame, labels))
    label = f"Bytes in the store over time, at most {formats.size(peak)}. The table below says the same."
    return shapes.picture(frame, label, *parts, name="storage")


def _areas(points: Sequence[StoredBytes], x: Scale, y: Scale, frame: Frame, suffix: str) -> Iterator[Markup]:
    thin = shapes.per_pixel(points, lambda point: x(point.at.timestamp()), lambda point: point.total)
    places = [x(point.at.timestamp()) for point in thin]
    live = _outline(places, [y(point.live) for point in thin])
    total = _outline(places, [y(point.total) for point in thin])
    floor = [(places[0], frame.bottom), (places[-1], frame.bottom)]
    for class_, upper, lower in (("retired", total, live), ("live", live, floor)):
        yield el("path", d=f"{shapes.path_of([*upper, *reversed(lower)])}z", class_=f"area {class_}{suffix}")
        yield el("path", d=shapes.path_of(upper), class_=f"edge {class_}{suffix}")


def _outline(places: Sequence[float], heights: Sequence[float]) -> list[tuple[float, float]]:
    """The corners of a line that keeps its height until the next place."""
    corners = [(places[0], heights[0])]
    for place, before, height in zip(places[1:], heights, heights[1:], strict=False):
        corners += [(place, before), (place, height)]
    return corners


def metric_chart(series: MetricSeries, rows: Mapping[str, str]) -> Markup:
    """Draw one metric by step, with the kept snapshots as marks and the best one in a ring."""
    frame = Frame(_METRIC_WIDTH, 200, 62, _METRIC_WIDTH - 10, 12, 172)
    every = (*series.points, *series.abandoned)
    steps, values = [point.step for point in every], [point.value for point in every]
    low, high = min(values), max(values)
    step = nice_step((high - low) / 4) if high > low else nice_step(abs(high) or 1.0)
    x = Scale(min(steps), max(steps), frame.left + 4, frame.right - 6)
    y = Scale(low - (high - low) * 0.06, high + (high - low) * 0.06, frame.bottom - 4, frame.top + 4)
    label = f"{series.name} by step, {formats.value(low)} to {formats.value(high)}. The table below says the same."
    found = ticks(y, 5, formats.axis_value, step=step) if high > low else [Tick(y(high), formats.axis_value(high))]
    return el(
        "svg",
        shapes.y_axis(frame, found),
        shapes.group(*_curves(series, x, y)),
        el("g", *_points(series, x, y, rows), class_="marks", role="group", aria_label="Snapshots that are kept"),
        shapes.x_axis(frame, ticks(x, 4, formats.axis_value)),
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="group",
        aria_label=label,
        class_="picture metric",
    )


def _curves(series: MetricSeries, x: Scale, y: Scale) -> Iterator[Markup]:
    for points, class_ in ((series.abandoned, "line lost"), (series.points, "line")):
        thin = shapes.per_pixel(points, lambda point: x(point.step), lambda point: point.value)
        if class_ == "line lost":
            thinned_out = {(round(x(point.step)), round(y(point.value))) for point in thin}
            for place in sorted(thinned_out):
                yield el("circle", cx=place[0], cy=place[1], r=2, class_="dot lost")
        elif thin:
            yield el("path", d=shapes.path_of([(x(p.step), y(p.value)) for p in thin]), class_=class_)


def _points(series: MetricSeries, x: Scale, y: Scale, rows: Mapping[str, str]) -> Iterator[Markup]:
    bins: dict[int, MetricPoint] = {}
    for point in series.points:
        if point.kept:
            column = int(x(point.step) // _BETWEEN_POINTS)
            if bins.get(column) is None or bins[column] is not series.best:
                bins[column] = point
    for point in bins.values():
        best = series.best is not None and point is series.best
        words = f"Step {formats.count(point.step)}, {series.name} {formats.value(point.value)}"
        ring = el("circle", r=8, class_="ring") if best else None
        yield el(
            "a",
            el("title", f"{words}, {'best' if best else 'kept'}"),
            el("circle", r=9, class_="target"),
            ring,
            el("path", d=shapes.shape(point.life.state)),
            href=f"#{rows[point.life.snapshot.id]}",
            class_=f"mark {point.life.state}",
            data_state=str(point.life.state),
            transform=f"translate({x(point.step):.1f} {y(point.value):.1f})",
        )
