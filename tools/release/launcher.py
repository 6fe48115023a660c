#!/usr/bin/env python3
"""Starts `kubectl ckpt` from the folder that krew unpacked, with a Python of this machine that it supports.

The first python3 on PATH reads this file, however old it is: nothing here needs more than Python 3.6.
"""

import os
import shutil
import sys

MINORS = (11, 12, 13, 14)
HERE = os.path.realpath(__file__)


def start_with_another() -> None:
    for minor in reversed(MINORS):
        program = shutil.which(f"python3.{minor}")
        if program:
            os.execv(program, [program, HERE, *sys.argv[1:]])
    found = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    wanted = f"Python 3.{MINORS[0]} to 3.{MINORS[-1]}"
    sys.exit(f"kubectl ckpt: start with {found}: it is not supported. Install one of {wanted}.")


if sys.version_info[0] != 3 or sys.version_info[1] not in MINORS:
    start_with_another()
packages = os.path.join(os.path.dirname(HERE), "packages")
sys.path[:0] = [os.path.join(packages, f"python3.{sys.version_info[1]}"), os.path.join(packages, "any")]

from checkpoint_cli.app import cluster  # noqa: E402

cluster()
