"""For tests: `python -m demo.on_this_machine` is `python -m demo.current` for a cluster whose nodes are this machine.

Its pods run this Python environment, so that no image of some GB is needed, and they share this machine's ports.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo.current import command
from demo.current.images import Programs
from localcluster import images, network


def programs() -> Programs:
    """What pods run: this environment."""
    ports = network.free_ports()
    python = images.host_python(scratch=False)
    repository, _, tag = python.image.rpartition(":")
    operator = {
        "image": {"repository": repository, "tag": tag},
        "command": [python.python, "-m", "checkpoint_operator"],
        "extraEnv": python.environment,
        "extraVolumes": python.volumes,
        "extraVolumeMounts": python.volume_mounts,
        "hostNetwork": True,
        "metrics": {"port": next(ports)},
        "health": {"port": next(ports)},
    }
    return Programs(images.host_python(), operator, address="127.0.0.1")


if __name__ == "__main__":
    command.clean_up_when_ended()
    folder, *options = sys.argv[1:]
    bucket = next((option.partition("=")[2] for option in options if option.startswith("--bucket=")), "")
    sys.exit(
        command.run(command.Request(folder=Path(folder), yes="--yes" in options, bucket=bucket, programs=programs()))
    )
