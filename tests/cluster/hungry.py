"""The training of the example, in which one rank takes all the memory it can get once `TRIGGER` appears: a script."""

from __future__ import annotations

import os
import runpy
import threading
import time
from pathlib import Path

TRIGGER = "/dev/shm/eat"  # in a volume of the pod, which outlives the container
SCRIPT = Path(__file__).parents[2] / "examples" / "train.py"
MOUTHFUL = 64 << 20


def eat() -> None:
    while not os.path.exists(TRIGGER):
        time.sleep(0.1)
    os.unlink(TRIGGER)  # the container that follows shall live
    eaten = []
    while True:
        eaten.append(b"x" * MOUTHFUL)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        threading.Thread(target=eat, daemon=True).start()
    runpy.run_path(str(SCRIPT), run_name="__main__")
