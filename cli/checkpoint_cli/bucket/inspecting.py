"""``tree`` and ``diff``: what is in a snapshot, and how two of them differ."""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoint_cli.bucket.door import AddressedRun, of_run
from checkpoint_cli.options import Output
from checkpoint_cli.output import OutputFormat


@of_run
def tree(
    at: AddressedRun,
    depth: Annotated[
        int, typer.Option("--depth", "-d", min=0, help="Sum up names with more parts than this; 0 lists every tensor.")
    ] = 0,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the modules and tensors of a snapshot with shapes and sizes; without a selector, of the latest. Needs torch.

    Example: {program} tree s3://training/llama-7b@best --depth 3
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.tensors import items_of
    from checkpoint_cli.bucket.verify import present
    from checkpoint_cli.records import ItemRecords
    from checkpoint_cli.tree import as_modules

    snapshot = present(at.url, at.snapshot())
    items = items_of(at, snapshot, "list the contents of")
    total = sum(each.bytes or 0 for each in items.values())
    records = as_modules(items.values(), depth)
    views.show_items(ItemRecords(run=at.url, snapshot=snapshot.id, bytes=total, items=records), output)


@of_run
def diff(
    at: AddressedRun,
    other: Annotated[
        str,
        typer.Argument(metavar="OTHER", help="Another snapshot: a selector, or <url>@<selector> of another run."),
    ],
    values: Annotated[
        bool, typer.Option("--values", help="Read both snapshots and compare the values of their tensors.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Compare two snapshots: metrics, names, shapes and dtypes; with --values also norms. Needs torch.

    The exit status is 1 if tensors differ.

    Example: {program} diff s3://training/llama-7b@best s3://training/llama-8b@best --values
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.convert import snapshot_records
    from checkpoint_cli.bucket.reading import findings
    from checkpoint_cli.bucket.tensors import changed_values, items_of
    from checkpoint_cli.bucket.verify import present
    from checkpoint_cli.exits import ExitStatus
    from checkpoint_cli.progress import bytes_bar
    from checkpoint_cli.records import DifferenceRecord, DifferenceRecords
    from checkpoint_cli.tree import differing_items, differing_properties

    sides = (at, _other(at, other))
    a, b = (present(each.url, each.snapshot()) for each in sides)
    first, second = (snapshot_records(findings(run), [each])[0] for run, each in zip(sides, (a, b), strict=True))
    left, right = (items_of(run, each, "compare") for run, each in zip(sides, (a, b), strict=True))
    structure = list(differing_items(left, right))
    unlike = {each.name for each in structure}
    same = [each for name, each in left.items() if name in right and name not in unlike and each.type == "tensor"]
    changed = []
    if values:
        with bytes_bar("comparing", sum(each.bytes or 0 for each in same)) as advance:
            for name, norm_a, norm_b, apart in changed_values(sides, (a, b), same):
                advance(left[name].bytes or 0)
                if not apart == 0.0:  # noqa: SIM201 - a NaN differs from everything
                    change = apart / norm_a if norm_a else None
                    texts = {"a": f"{norm_a:.6g}", "b": f"{norm_b:.6g}"}
                    changed.append(DifferenceRecord(what="value", name=name, change=change, **texts))
    apart_runs = sides[0].url != sides[1].url
    records = DifferenceRecords(
        a=f"{sides[0].url}@{a.id}" if apart_runs else a.id,
        b=f"{sides[1].url}@{b.id}" if apart_runs else b.id,
        values=values,
        same=len(same) - len(changed),
        items=(*differing_properties(first, second), *structure, *changed),
    )
    views.show_differences(records, output)
    if structure or changed:
        raise typer.Exit(ExitStatus.PROBLEM)


def _other(at: AddressedRun, text: str) -> AddressedRun:
    if "://" not in text:
        other = at.with_selector(text.removeprefix("@"))
        # Both read one log.
        other.__dict__["run"] = at.run
        return other
    from checkpoint_sidecar.core.address import parse_address

    address = parse_address(text)
    return AddressedRun(address.url, address.selector, at.endpoint, at.region, at.credentials_folder)
