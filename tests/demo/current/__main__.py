"""`make demo CLUSTER=current` and `make down CLUSTER=current`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from demo.current import command


def main(
    image: Annotated[
        str, typer.Option(help="An image that the cluster can pull; default: build one and load it.")
    ] = "",
    bucket: Annotated[str, typer.Option(help="s3://<bucket>/<folder>; default: an object store in the cluster.")] = "",
    keep: Annotated[bool, typer.Option(help="Leave everything in the cluster.")] = False,
    yes: Annotated[bool, typer.Option(help="Do not ask.")] = False,
    remove: Annotated[bool, typer.Option(help="Only remove what an earlier demo left.")] = False,
) -> None:
    """Tell the story of the demo on the cluster of the current kube context, and remove every trace."""
    command.clean_up_when_ended()
    request = command.Request(image=image, bucket=bucket, keep=keep, yes=yes)
    sys.exit(command.remove(request) if remove else command.run(request))


if __name__ == "__main__":
    typer.run(main)
