"""How records look to a person; both doors print them through here."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterable, Sequence

from checkpoint_cli import output as out
from checkpoint_cli.exits import one_line
from checkpoint_cli.output import Column, OutputFormat
from checkpoint_cli.records import (
    ChangeRecord,
    DifferenceRecord,
    DifferenceRecords,
    EntryRecord,
    EntryRecords,
    ExportedFileRecord,
    ExportedRecord,
    ItemRecord,
    ItemRecords,
    ReportRecord,
    RunRecord,
    RunRecords,
    SnapshotRecord,
    SnapshotRecords,
)
from checkpoint_cli.words import age, duration
from checkpoint_sidecar.core.units import counted, quantity

_LABEL = 14
_HEALTH_COLORS = {"Healthy": "green", "Degraded": "yellow", "Broken": "red"}


def show_snapshots(records: SnapshotRecords, output: OutputFormat, now: dt.datetime, *, empty: str = "") -> None:
    """Print snapshots in the chosen format.

    Args:
        empty: What to say on standard error if there are none.
    """
    if output is OutputFormat.NAME:
        out.write_names(each.id for each in records.items)
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(records, output)
    else:
        out.write_table(
            snapshot_columns(now), records.items, output=output, empty=empty or f"{records.run} has no snapshots."
        )


def snapshot_columns(now: dt.datetime) -> tuple[Column[SnapshotRecord], ...]:
    """Return the columns of a list of snapshots, with ages at ``now``."""
    return (
        Column("STEP", lambda s: str(s.step), right=True),
        Column("SNAPSHOT", lambda s: s.id),
        Column("AGE", lambda s: age(s.committed_at, now), right=True, spare=1),
        Column("SIZE", lambda s: _size(s.bytes), right=True, spare=2),
        Column("STATE", lambda s: s.state, spare=1),
        Column("VERIFIED", lambda s: s.verified or "-", spare=4),
        Column("KEPT BECAUSE", _kept, spare=5),
        Column("MARKS", lambda s: ",".join(s.marks) or "-", spare=3),
        Column("METRICS", lambda s: _metrics(s.metrics), spare=7, wide=True),
        Column("ATTEMPT", lambda s: str(s.attempt), right=True, spare=8, wide=True),
        Column("TRIGGER", lambda s: s.trigger or "-", spare=9, wide=True),
        Column("SAVED IN", lambda s: _seconds(s.saved_in), right=True, spare=10, wide=True),
        Column("COMMITTED", lambda s: s.committed_at or "-", spare=11, wide=True),
        Column("PATH", lambda s: s.path or "-", spare=12, wide=True),
    )


def show_snapshot(record: SnapshotRecord, output: OutputFormat, now: dt.datetime) -> None:
    """Print one snapshot in the chosen format."""
    if output is OutputFormat.NAME:
        out.write_names([record.id])
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(record, output)
    else:
        _fields(_snapshot_fields(record, now))


def _snapshot_fields(record: SnapshotRecord, now: dt.datetime) -> Iterable[tuple[str, str]]:
    yield "Snapshot", record.id
    yield "Step", str(record.step)
    yield "Attempt", str(record.attempt)
    yield "State", f"{record.state}{_parenthesis(record.marks)}"
    yield "Committed", f"{age(record.committed_at, now)} ago, {record.committed_at}"
    yield (
        "Size",
        f"{_size(record.bytes)} in {_count(record.files, 'file')}, saved by {_count(record.world_size, 'rank')}",
    )
    yield "Saved in", f"{_seconds(record.saved_in)}, trigger {record.trigger or 'unknown'}"
    yield "Verified", record.verified or "-"
    if record.failures:
        yield "Evidence", f"{record.evidence or 'damage'}, found {_times(record.failures)}"
    yield "Disposition", record.disposition
    if record.kept is not None:
        yield "Retention", f"{'kept' if record.kept else 'goes'}: {', '.join(record.reasons) or 'no reason given'}"
    if record.purge_after:
        yield "Deleted after", record.purge_after
    for name, value in record.metrics.items():
        yield f"  {one_line(name)}", value
    yield "Parent", record.parent or "none"
    yield "Path", record.path
    yield "Manifest", record.manifest_digest or "-"


def show_runs(records: RunRecords, output: OutputFormat, now: dt.datetime) -> None:
    """Print runs in the chosen format."""
    if output is OutputFormat.NAME:
        out.write_names(each.name for each in records.items)
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(records, output)
    else:
        out.write_table(_run_columns(now), records.items, output=output, empty="No runs found.")


def _run_columns(now: dt.datetime) -> tuple[Column[RunRecord], ...]:
    return (
        Column("NAME", lambda r: r.name),
        Column("HEALTH", lambda r: r.health, spare=1),
        Column("STEP", lambda r: str(r.latest.step) if r.latest else "-", right=True, spare=1),
        Column("SAVED", lambda r: f"{age(r.latest.committed_at, now)} ago" if r.latest else "never", spare=2),
        Column("SNAPSHOTS", lambda r: str(r.snapshots or 0), right=True, spare=4),
        Column("SIZE", lambda r: _size(r.retained_bytes), right=True, spare=5),
        Column("ATTEMPT", lambda r: str(r.attempt.number) if r.attempt else "-", right=True, spare=6),
        Column("URL", lambda r: r.url, spare=9, wide=True),
        Column("PROBLEM", lambda r: r.problems[0] if r.problems else "-", spare=8, wide=True),
    )


def show_run(record: RunRecord, output: OutputFormat, now: dt.datetime, *, until_step: int | None = None) -> None:
    """Print one run in the chosen format; as a table, everything on one screen.

    Args:
        until_step: The last step of the training, for the time that is left.
    """
    if output is OutputFormat.NAME:
        out.write_names([record.name])
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(record, output)
    else:
        _fields(_run_fields(record, now, until_step))


def _run_fields(record: RunRecord, now: dt.datetime, until_step: int | None) -> Iterable[tuple[str, str]]:
    yield "Run", record.name
    if record.url != record.name:
        yield "URL", record.url
    yield "Owner", record.owner or "none: nothing was ever written here"
    yield "Health", record.health + (f": {record.problems[0]}" if record.problems else "")
    for problem in record.problems[1:]:
        yield "", problem
    yield from _training_fields(record, now, until_step)
    if record.latest is None:
        yield "Last save", "never"
    else:
        last = record.latest
        took = f", {_size(last.bytes)}" + (f" in {_seconds(last.saved_in)}" if last.saved_in is not None else "")
        yield "Last save", f"step {last.step}, {age(last.committed_at, now)} ago{took} ({last.id})"
    if record.best is not None:
        yield "Best", f"step {record.best.step} ({record.best.id}){_metrics_note(record.best)}"
    yield "Next save", record.next_save or "unknown"
    yield "Lost work", _lost(record)
    if record.pending:
        yield "Next start", record.pending
    yield "Snapshots", f"{record.snapshots or 0} can be restored, {_size(record.retained_bytes)}"
    yield from _retention_fields(record)


def _training_fields(record: RunRecord, now: dt.datetime, until_step: int | None) -> Iterable[tuple[str, str]]:
    attempt = record.attempt
    if attempt is None:
        yield "Training", "never started"
        return
    started = f"attempt {attempt.number}, started {age(attempt.started_at, now)} ago"
    yield "Training", f"{started}{', ended' if attempt.ended else ''}"
    if attempt.notice:
        yield "", attempt.notice
    if attempt.step is not None:
        pace = f", {attempt.steps_per_second:.3g} steps/s" if attempt.steps_per_second else ""
        yield "Progress", f"step {attempt.step}, {age(attempt.step_at, now)} ago{pace}{_left(record, until_step)}"


def _left(record: RunRecord, until_step: int | None) -> str:
    attempt = record.attempt
    if until_step is None or attempt is None or attempt.step is None:
        return ""
    if attempt.step >= until_step:
        return f", step {until_step} is reached"
    if not attempt.steps_per_second:
        return f", {until_step - attempt.step} steps left"
    return f", step {until_step} in about {duration((until_step - attempt.step) / attempt.steps_per_second)}"


def _lost(record: RunRecord) -> str:
    if record.lost_steps is None:
        return "unknown"
    if not record.lost_steps:
        return "none at the last start"
    time = f", {duration(record.lost_seconds)}" if record.lost_seconds else ""
    return f"{record.lost_steps} steps{time} at the last start"


def _retention_fields(record: RunRecord) -> Iterable[tuple[str, str]]:
    if record.suspended:
        yield "Retention", "suspended"
    if not record.next_purges:
        yield "Retention", "nothing to do next"
    for at, each in enumerate(record.next_purges[:5]):
        when = f" after {each.at}" if each.at else ""
        why = f" ({', '.join(each.reasons)})" if each.reasons else ""
        yield "Retention" if at == 0 else "", f"{each.action.lower()}s {each.snapshot}{when}{why}"
    if len(record.next_purges) > 5:
        yield "", f"and {len(record.next_purges) - 5} more"


def show_entries(records: EntryRecords, output: OutputFormat) -> None:
    """Print the story of a run."""
    if output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(records, output)
        return
    for record in records.items:
        show_entry(record, output)


def show_entry(record: EntryRecord, output: OutputFormat) -> None:
    """Print one entry, as JSON on one line."""
    if output is OutputFormat.NAME:
        out.write_names([record.event if record.number is None else str(record.number)])
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        import msgspec

        out.write(msgspec.json.encode(record).decode())
    else:
        number = f"{record.number:>6}  " if record.number is not None else ""
        head = f"{number}{record.time}  "
        writer = f"  [{record.writer}]" if output is OutputFormat.WIDE and record.writer else ""
        out.write(f"{head}{out.wrapped(record.text + writer, len(head))}")


def show_report(record: ReportRecord, output: OutputFormat) -> None:
    """Print what a check found."""
    if output is OutputFormat.NAME:
        out.write_names(each.check for each in record.items if each.result != "ok")
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(record, output)
    else:
        for each in record.items:
            word = out.paint(f"{each.result:<8}", {"ok": "green", "problem": "red"}.get(each.result, "yellow"))
            detail = f": {each.detail}" if each.detail else ""
            out.write(f"{word} {out.wrapped(each.check + detail, 9)}")


def show_change(record: ChangeRecord, output: OutputFormat) -> None:
    """Print what was changed."""
    if output is OutputFormat.NAME:
        out.write_names([record.request or record.snapshot or record.run])
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(record, output)
    else:
        out.write(out.wrapped(record.text, 0))


def show_items(records: ItemRecords, output: OutputFormat) -> None:
    """Print the contents of a snapshot."""
    if output is OutputFormat.NAME:
        out.write_names(each.name for each in records.items)
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(records, output)
    else:
        columns: tuple[Column[ItemRecord], ...] = (
            Column("NAME", lambda i: i.name),
            Column("SHAPE", lambda i: _shape(i.shape), spare=2),
            Column("DTYPE", lambda i: i.dtype or "-", spare=3),
            Column("TENSORS", lambda i: str(i.tensors) if i.type == "module" else "-", right=True, spare=4),
            Column("SIZE", lambda i: _size(i.bytes), right=True, spare=1),
        )
        out.write_table(columns, records.items, output=output, empty=f"{records.snapshot} is empty.")


def show_differences(records: DifferenceRecords, output: OutputFormat) -> None:
    """Print what differs between two snapshots."""
    if output is OutputFormat.NAME:
        out.write_names(each.name for each in records.items if each.what not in ("property", "metric"))
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(records, output)
    else:
        columns: tuple[Column[DifferenceRecord], ...] = (
            Column("WHAT", lambda d: d.what, spare=1),
            Column("NAME", lambda d: d.name),
            Column("A", lambda d: d.a or "-"),
            Column("B", lambda d: d.b or "-"),
            Column("CHANGE", lambda d: "-" if d.change is None else f"{d.change:.3g}", right=True, spare=2),
        )
        out.write_table(columns, records.items, output=output, empty="They are equal.")
        note(f"{records.same} tensors {'are equal' if records.values else 'have equal shapes and dtypes'}.")


def show_export(record: ExportedRecord, output: OutputFormat) -> None:
    """Print what was exported, and name what was not."""
    if output is OutputFormat.NAME:
        out.write_names(each.name for each in record.items)
    elif output in (OutputFormat.JSON, OutputFormat.YAML):
        out.write_record(record, output)
    else:
        columns: tuple[Column[ExportedFileRecord], ...] = (
            Column("FILE", lambda f: f.name),
            Column("SIZE", lambda f: _size(f.bytes), right=True),
            Column("STATE", lambda f: f.state),
            Column("CRC32C", lambda f: f.crc32c or "-", spare=1),
        )
        out.write_table(columns, record.items, output=output)
    if record.skipped:
        note(f"Not exported, because they are no tensors: {', '.join(record.skipped)}.")
    if record.ties:
        note(f"Written once: {', '.join(f'{tie} is {name}' for tie, name in sorted(record.ties.items()))}.")
    what = f"{record.tensors} tensors of step {record.step} ({record.snapshot}), {_size(record.bytes)}"
    if record.done:
        note(f"Exported {what}, to {record.destination}; {_size(record.passing_bytes)} passed through this machine.")
    elif any(each.state == "planned" for each in record.items):
        note(f"Would export {what}, to {record.destination}; {_size(record.passing_bytes)} through this machine.")
    else:
        note(f"{record.destination} has this export already: {what}.")


def now() -> dt.datetime:
    """Return the time of this machine."""
    return dt.datetime.now(dt.UTC)


def write_line(text: str) -> None:
    """Print one line."""
    out.write(text)


def flush() -> None:
    """Hand the output on: a reader of a pipe follows it line by line."""
    sys.stdout.flush()


def note(text: str) -> None:
    """Say something beside the output, on standard error."""
    sys.stderr.write(f"{text}\n")


def _fields(fields: Iterable[tuple[str, str]]) -> None:
    for label, text in fields:
        head = f"{label}:" if label else ""
        shown = out.wrapped(text, _LABEL + 1)
        word = shown.partition(":")[0]
        if label == "Health":
            shown = out.paint(word, _HEALTH_COLORS[word]) + shown[len(word) :]
        out.write(f"{head:<{_LABEL}} {shown}")


def _kept(snapshot: SnapshotRecord) -> str:
    if snapshot.kept is None:
        return "-"
    reasons = ",".join(snapshot.reasons)
    return reasons or "-" if snapshot.kept else f"goes: {reasons}"


def _metrics(metrics: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in metrics.items()) or "-"


def _metrics_note(snapshot: SnapshotRecord) -> str:
    return f", {_metrics(snapshot.metrics)}" if snapshot.metrics else ""


def _size(count: int | None) -> str:
    return "-" if count is None else quantity(count)


def _shape(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "-"
    return "x".join(map(str, shape)) or "scalar"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}s"


def _count(count: int | None, noun: str) -> str:
    return f"an unknown number of {noun}s" if count is None else counted(count, noun)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _parenthesis(marks: Sequence[str]) -> str:
    return f" ({', '.join(marks)})" if marks else ""
