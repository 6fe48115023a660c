"""Large bodies in files: allocates their space, writes parts and reads ranges in place, without copies."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections import deque
from collections.abc import Callable, Sequence

_MOST_BUFFERS = os.sysconf("SC_IOV_MAX")
_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def reserve(descriptor: int, size: int) -> None:
    """Allocate ``size`` bytes for an empty file, so that a full disk shows before the first write.

    Raises:
        OSError: ENOSPC, EDQUOT or EFBIG: the space is not available.
    """
    if not size:
        return
    room = os.fstatvfs(descriptor)
    if room.f_blocks and room.f_bavail * room.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # Not posix_fallocate, which writes to every block on file systems without the operation, such as NFS.
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return
    failed = libc.fallocate(descriptor, 0, ctypes.c_longlong(0), ctypes.c_longlong(size))
    if failed and (number := ctypes.get_errno()) not in _NOT_SUPPORTED:
        raise OSError(number, os.strerror(number))


def read_into(descriptor: int, start: int, buffers: Sequence[memoryview]) -> int:
    """Fill the buffers from offset ``start``. Returns how many bytes there were.

    Raises:
        OSError: As the system says.
    """
    return _transfer(os.preadv, descriptor, start, buffers)


def write_from(descriptor: int, start: int, buffers: Sequence[memoryview]) -> None:
    """Write all the buffers at offset ``start``.

    Raises:
        OSError: As the system says.
    """
    _transfer(os.pwritev, descriptor, start, buffers)


def _transfer(
    call: Callable[[int, Sequence[memoryview], int], int], descriptor: int, start: int, buffers: Sequence[memoryview]
) -> int:
    """Repeat a call until all buffers are done, or it transfers nothing: one call transfers a limited amount."""
    remaining = deque(view for buffer in buffers if (view := buffer.cast("B")))
    done = 0
    while remaining:
        moved = call(descriptor, list(itertools.islice(remaining, _MOST_BUFFERS)), start + done)
        if not moved:
            break
        done += moved
        while moved:
            first = remaining.popleft()
            if moved < first.nbytes:
                remaining.appendleft(first[moved:])
            moved = max(0, moved - first.nbytes)
    return done
