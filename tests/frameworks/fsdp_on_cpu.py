"""Runs a program with FSDP on the CPU: accelerate shards on accelerators only, and says nothing elsewhere.

Usage: python fsdp_on_cpu.py <program> <arguments>
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate import DistributedType
from accelerate.state import AcceleratorState

prepare = AcceleratorState.__init__


def prepare_sharding(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    prepare(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    chosen = fsdp_plugin or self.__dict__.get("fsdp_plugin")
    if chosen is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = chosen


AcceleratorState.__init__ = prepare_sharding
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
