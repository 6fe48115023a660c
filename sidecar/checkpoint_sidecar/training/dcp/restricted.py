"""Reads values that DCP wrote with ``torch.save``, without running code in them."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import importlib
import io
import pathlib
import pickle
import re
import sys
import uuid
from typing import Any, Literal, TypeAlias

import torch

from checkpoint_sidecar.core.errors import CheckpointError, CorruptSnapshotError, UntrustedSnapshotError
from checkpoint_sidecar.core.pickles import MalformedError, RefusedError
from checkpoint_sidecar.training.dcp.inspection import inspect
from checkpoint_sidecar.training.dcp.unpickler import TRUST_HINT

Trust: TypeAlias = Literal["safe", "full"]

_OPERATION = "load"
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


def load_restricted(stream: io.BytesIO, *, subject: str, trust: Trust, map_location: str | None = "cpu") -> Any:
    """Load a value that ``torch.save`` wrote. Unless it is trusted, build plain data and tensors only.

    Args:
        subject: Name in errors.

    Raises:
        UntrustedSnapshotError: It needs a class that ``trust="safe"`` refuses, or far more memory than its size.
        CorruptSnapshotError: ``torch.save`` did not write it.
        CheckpointError: torch cannot load it.
    """
    try:
        if trust == "full":
            return torch.load(stream, map_location=map_location, weights_only=False)
        inspect(stream)
        with torch.serialization.safe_globals(safe_classes()):
            return torch.load(stream, map_location=map_location, weights_only=True)
    except RefusedError as refused:
        raise UntrustedSnapshotError(_OPERATION, subject, str(refused), TRUST_HINT) from None
    except MalformedError as malformed:
        raise CorruptSnapshotError(
            _OPERATION, subject, f"torch.save did not write it: {malformed}", evidence="ManifestMismatch"
        ) from None
    except pickle.UnpicklingError as error:
        refused_class = _REFUSED_GLOBAL.search(str(error))
        raise UntrustedSnapshotError(
            _OPERATION,
            subject,
            f"torch.load(weights_only=True) refuses {refused_class[1] if refused_class else 'its contents'}",
            "Allow the class with torch.serialization.add_safe_globals. " + TRUST_HINT,
        ) from error
    except Exception as error:
        raise CheckpointError(_OPERATION, subject, f"{type(error).__name__}: {str(error)[:500]}") from error


def safe_classes() -> list[Any]:
    """Return the classes that ``torch.load(weights_only=True)`` may also rebuild, besides torch's own: plain data only.

    Needed for values that DCP pickled, in snapshots of earlier versions and stock checkpoints.
    """
    found: list[Any] = [
        collections.defaultdict,
        collections.deque,
        dt.date,
        dt.datetime,
        dt.time,
        dt.timedelta,
        dt.timezone,
        decimal.Decimal,
        fractions.Fraction,
        uuid.UUID,
        range,
        slice,
        frozenset,
        int,
        float,
        str,
        bool,
        bytes,
        list,
        dict,
        set,
        tuple,
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
        type(pathlib.Path()),
    ]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        multiarray = importlib.import_module(
            "numpy._core.multiarray" if hasattr(numpy, "_core") else "numpy.core.multiarray"
        )
        kinds = {type(numpy.dtype(code)) for code in "?bhilqBHILQefdgFDGSUMm"}
        found += [numpy.ndarray, numpy.dtype, multiarray.scalar, multiarray._reconstruct, *kinds]
        # NumPy 1 writes the names of its old modules.
        found += [
            (multiarray.scalar, "numpy.core.multiarray.scalar"),
            (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        ]
    return found
