"""The operator's image, built from `operator/Dockerfile`.

`python -m demo.image` prepares what takes minutes, with `--whole` the whole image (standard library only, for the
bootstrap).
"""

from __future__ import annotations

import sys
from pathlib import Path

from localcluster import imagebuild, requirements

RECIPE = imagebuild.Recipe(
    name="checkpoint-operator",
    context=Path(__file__).parents[2],
    dockerfile="operator/Dockerfile",
    locked=("pyproject.toml", "uv.lock"),
    sources=("README.md", "LICENSE", "cli", "operator", "sidecar"),
)


def build() -> imagebuild.Image | None:
    """The image of the sources as they are; None on a machine that cannot build one. Raises `ImageError`."""
    return imagebuild.build(RECIPE) if requirements.image_problem() is None else None


def main() -> int:
    try:
        make = imagebuild.build if "--whole" in sys.argv else imagebuild.prepare
        make(RECIPE, lambda line: print(line, flush=True))
    except imagebuild.ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
