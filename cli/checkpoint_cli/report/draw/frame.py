"""The common parts of all pictures: size, axes, marks and thinning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from checkpoint_cli.report import formats
from checkpoint_cli.report.draw.markup import Markup, el, join
from checkpoint_cli.report.draw.scales import Tick, thinned
from checkpoint_cli.report.history import ShownState, SnapshotLife

WIDE, NARROW = 920, 340
"""Widths of the two versions of a picture, in CSS pixels: text has its size in both."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Frame:
    """The area of a picture, in CSS pixels.

    Attributes:
        left, right, top, bottom: Edges of the plot inside of it.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    @property
    def narrow(self) -> bool:
        return self.width < 600

    @property
    def time_labels(self) -> int:
        """Number of labels that fit below the plot."""
        return max(int((self.right - self.left) / (64 if self.narrow else 86)), 2)


def picture(frame: Frame, label: str, *parts: Markup, name: str = "") -> Markup:
    """Return an SVG element that a screen reader announces as a group with this label."""
    version = "narrow" if frame.narrow else "wide"
    return el(
        "svg",
        *parts,
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="group",
        aria_label=label,
        class_=f"picture {version} {name}".strip(),
    )


def y_axis(frame: Frame, found: Iterable[Tick]) -> Markup:
    """Return grid lines and labels of the vertical axis."""
    parts: list[Markup] = []
    for tick in found:
        parts.append(line(frame.left, tick.place, frame.right, tick.place, "grid"))
        parts.append(text(frame.left - 8, tick.place + 4, tick.label, "label end"))
    return group(*parts)


def x_axis(frame: Frame, found: Sequence[Tick]) -> Markup:
    """Return the base line and the labels of the horizontal axis."""
    parts = [line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    for tick in thinned(found, 46):
        place = "label start" if tick.place < frame.left + 16 else "label middle"
        place = "label end" if tick.place > frame.right - 16 else place
        parts.append(line(tick.place, frame.bottom, tick.place, frame.bottom + 4, "axis"))
        parts.append(text(tick.place, frame.bottom + 17, tick.label, place))
    return group(*parts)


def group(*parts: Markup) -> Markup:
    """Return decoration that screen readers skip: the tables say the same."""
    return el("g", *parts, aria_hidden="true")


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return el("line", x1=round(x1, 1), y1=round(y1, 1), x2=round(x2, 1), y2=round(y2, 1), class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, *children: Markup) -> Markup:
    return el("rect", *children, x=round(x, 2), y=round(y, 2), width=round(width, 2), height=height, class_=class_)


def text(x: float, y: float, content: str, class_: str) -> Markup:
    return el("text", content, x=round(x, 1), y=round(y, 1), class_=class_)


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """Return path data through the points, one for each tenth of a pixel at most."""
    parts: list[str] = []
    before = (float("nan"), float("nan"))
    for x, y in points:
        place = (round(x, 1), round(y, 1))
        if place == before:
            continue
        parts.append(f"{'L' if parts else 'M'}{place[0]:g} {place[1]:g}")
        before = place
    return "".join(parts)


def per_pixel(points: Sequence[Item], place: Callable[[Item], float], height: Callable[[Item], float]) -> list[Item]:
    """Keep at most four points for each pixel of width: first, lowest, highest and last. The line looks the same."""
    columns: dict[int, list[Item]] = {}
    for point in points:
        columns.setdefault(round(place(point)), []).append(point)
    kept: list[Item] = []
    for column in columns.values():
        chosen = {0, len(column) - 1}
        chosen.add(min(range(len(column)), key=lambda index: height(column[index])))
        chosen.add(max(range(len(column)), key=lambda index: height(column[index])))
        kept += [column[index] for index in sorted(chosen)]
    return kept


_SHAPES: dict[ShownState, str] = {
    ShownState.KEPT: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    ShownState.HELD: "M0-5.5L5.5 0L0 5.5L-5.5 0z",
    ShownState.DAMAGED: "M-4-4L4 4M4-4L-4 4",
    ShownState.RETIRED: "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    ShownState.PURGED: "M-1.6 0a1.6 1.6 0 1 0 3.2 0a1.6 1.6 0 1 0-3.2 0z",
    ShownState.REJECTED: "M-3 3L3 3L0-3z",
}


def shape(state: ShownState) -> str:
    """Return the path data of a state's mark, around 0, 0."""
    return _SHAPES[state]


def mark(x: float, y: float, lives: Sequence[SnapshotLife], target: str) -> Markup:
    """Return a focusable mark for one or several snapshots, linked to their row."""
    first, last = lives[0], lives[-1]
    return el(
        "a",
        el("title", _label(lives)),
        el("circle", r=9, class_="target"),
        el("path", d=shape(first.state)),
        href=f"#{target}",
        class_=f"mark {first.state}{'' if last.in_lineage else ' branch'}{' many' if len(lives) > 1 else ''}",
        data_state=str(first.state),
        transform=f"translate({x:.1f} {y:.1f})",
    )


def _label(lives: Sequence[SnapshotLife]) -> str:
    first, last = lives[0].snapshot, lives[-1].snapshot
    if len(lives) > 1:
        steps = f"steps {formats.count(first.step)} to {formats.count(last.step)}"
        return f"{len(lives)} snapshots, {lives[0].state}, {steps}"
    parts = [f"Step {formats.count(first.step)}, {lives[0].state}", formats.size(first.commit.bytes)]
    parts.append(f"{formats.moment(first.committed_at)} UTC")
    return ", ".join(parts)


def clustered(
    lives: Iterable[SnapshotLife], place: Callable[[SnapshotLife], float], distance: float
) -> list[tuple[SnapshotLife, ...]]:
    """Group snapshots of one state that would be drawn within ``distance`` pixels of each other."""
    bins: dict[tuple[int, ShownState, bool], list[SnapshotLife]] = {}
    for life in lives:
        bins.setdefault((int(place(life) // distance), life.state, life.in_lineage), []).append(life)
    order = list(ShownState)
    # Purged ones first, so that the others are drawn above them.
    return [tuple(found) for _, found in sorted(bins.items(), key=lambda item: (-order.index(item[0][1]), item[0][0]))]


def both(draw: Callable[[float], Markup]) -> Markup:
    """Draw a picture for wide and for narrow screens; the style sheet shows one of them."""
    return join(draw(WIDE), draw(NARROW))
