"""Large objects through obstore, for Google Cloud Storage and Azure: a stream of parts, and ranges in one answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import obstore

from checkpoint_sidecar.core.errors import ObjectNotFoundError, TruncatedObjectError, UnknownOutcomeError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.calls import Calls
from checkpoint_sidecar.store.obstore_clients import Clients
from checkpoint_sidecar.store.parts import PartedUpload

_PARALLEL_PARTS = 8
"""That obstore sends at once; they are held in memory until they are sent, whatever became of their buffers."""


class StreamedBodies:
    """The large objects of one store.

    Args:
        store: For objects of one part, and to see what became of an upload.
        calls: The store's.
    """

    def __init__(self, store: Store, calls: Calls[Clients]) -> None:
        self.store = store
        self.prefix = parse_url(store.url).prefix
        self.calls = calls

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """See ``Store``."""
        length = sum(buffer.nbytes for buffer in buffers)
        if length == 0:
            return
        path = self.prefix + key
        data = memoryview(
            self.calls.run(
                "read a range of", key, lambda c: obstore.get_range(c.requests, path, start=start, length=length)
            )
        )
        if data.nbytes != length:
            raise TruncatedObjectError(
                "read a range of", f"{self.store.url}/{key}", f"{data.nbytes} of {length} bytes at offset {start} exist"
            )
        position = 0
        for buffer in buffers:
            buffer.cast("B")[:] = data[position : position + buffer.nbytes]
            position += buffer.nbytes

    def upload(self, key: str, size: int) -> StreamedUpload:
        """See ``Store``."""
        return StreamedUpload(self, key, size)


class StreamedUpload(PartedUpload):
    """Feeds the parts, in order, to obstore, which runs in a thread of ours: given an iterator it sends some of them at
    a time, and aborts the upload if one fails or the iterator raises. (Its file-like writer cannot be aborted once it
    failed.) A part counts as written when so many later ones were asked for that it must be stored, or nearly.
    """

    def __init__(self, bodies: StreamedBodies, key: str, size: int) -> None:
        super().__init__(f"{bodies.store.url}/{key}", size)
        self._store = bodies.store
        self._calls = bodies.calls
        self._key = key
        self._path = bodies.prefix + key
        self._waiting: dict[int, Sequence[memoryview]] = {}
        self._fed = 0
        self._thread: ThreadPoolExecutor | None = None
        self._sending: Future[object] | None = None

    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        with self._changed:
            self._waiting[index] = views
            if self._parts == 1:
                return
            if self._sending is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
                self._sending = self._thread.submit(self._send)
                self._sending.add_done_callback(self._ended)
            self._changed.notify_all()
            self._changed.wait_for(lambda: index < self._fed or self._over(self._sending))
            taken = index < self._fed
        if not taken:
            if self._open and self._sending is not None:
                self._sending.result()
            raise self._aborted()

    def _publish(self) -> None:
        if self._sending is None:
            self._store.put(self._key, b"".join(self._waiting.get(0, ())))
            return
        try:
            self._sending.result()
        except (ObjectNotFoundError, UnknownOutcomeError):
            # Perhaps the upload was completed and the answer lost: then the client has found nothing to abort.
            info = self._store.stat(self._key)
            if info is None or info.size != self._size:
                raise
        finally:
            self._join()

    def _interrupt(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _discard(self) -> None:
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def _over(self, sending: Future[object] | None) -> bool:
        return not self._open or (sending is not None and sending.done())

    def _ended(self, _: Future[object]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _send(self) -> object:
        return self._calls.once(
            "upload",
            self._key,
            lambda c: obstore.put(
                c.bodies,
                self._path,
                self._feed(),
                use_multipart=True,
                chunk_size=self._part_bytes,
                max_concurrency=_PARALLEL_PARTS,
            ),
        )

    def _feed(self) -> Iterator[memoryview]:
        for index in range(self._parts):
            with self._changed:
                self._changed.wait_for(lambda: index in self._waiting or not self._open)  # noqa: B023 - used at once
                if not self._open:
                    raise _AbortedError
                views = self._waiting.pop(index)
            yield from views
            with self._changed:
                self._fed = index + 1
                self._changed.notify_all()


class _AbortedError(Exception):
    """Makes obstore abort the upload."""
