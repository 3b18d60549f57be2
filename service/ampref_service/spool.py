"""Where uploads wait to be read: in files of the service's own folder, and no more of them than there is room for."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

import anyio
import structlog

from amp_core.errors import Busy, Unavailable
from ampref_service.blobs.store import disk_errors
from ampref_service.settings import MIB, Settings

log = structlog.get_logger("ampref_service.uploads")

_PROBE_BYTES = 256 * 1024  # Written to tell whether there is room: more than the last free blocks of a disk that is full.
_THREADS = 4


class Spool:
    """The folder `uploads` of the data folder. Its files have no name: however the service ends, none is left behind.

    `threads` limits what works on the disk for uploads, so that a disk that hangs leaves the other threads to other requests.

    Raises:
      Unavailable: the folder cannot be made.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.data_dir / "uploads"
        self.threads = anyio.CapacityLimiter(_THREADS)
        self._has_failed = False
        self._lock = threading.Lock()
        with self.disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)

    def open_file(self) -> BinaryIO:
        """A new file, which is gone once it is closed."""
        with self.disk_errors():
            return cast(BinaryIO, tempfile.TemporaryFile(dir=self.folder))

    def store(self, chunks: Iterable[bytes]) -> BinaryIO:
        """Some bytes in a new file. What fails in `chunks` is raised as it is."""
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self.open_file())
            for chunk in chunks:
                with self.disk_errors():
                    file.write(chunk)
            with self.disk_errors():
                file.flush()
            stack.pop_all()
        return file

    async def write(self, file: BinaryIO, data: bytes) -> None:
        """Append to a file, in one of `threads`."""

        def write() -> None:
            with self.disk_errors():
                file.write(data)
                file.flush()
            self._note(None)

        await anyio.to_thread.run_sync(write, limiter=self.threads)

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Raise `DiskFull` for a disk that is full, and `Unavailable` for anything else that is wrong with it.

        The first time is logged, and the first time that something was written again.
        """
        try:
            try:
                with disk_errors(self.folder, content="uploads"):
                    yield
            except OSError as error:  # The folder is gone, or too many files are open.
                raise Unavailable(
                    f"{self.folder} cannot be used for uploads: {error.strerror or error}",
                    remedy="Send it again; if it repeats, restart the service, which makes the folder",
                ) from error
        except Unavailable as error:
            self._note(error)
            raise

    def check(self) -> None:
        """Raise as `disk_errors` unless the folder can be written."""
        with self.open_file() as file, self.disk_errors():
            file.write(bytes(_PROBE_BYTES))
            file.flush()
        self._note(None)

    def _note(self, error: Unavailable | None) -> None:
        with self._lock:
            has_changed = self._has_failed != (error is not None)
            self._has_failed = error is not None
        if has_changed and error is not None:
            log.error("uploads_refused", folder=str(self.folder), reason=error.what)
        elif has_changed:
            log.info("uploads_accepted_again", folder=str(self.folder))


class Admission:
    """How many uploads are taken at a time, and how many bytes of them: those that are arriving, waiting and being read.

    For the thread of one event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.upload_budget_mb * MIB
        self._max_uploads = settings.max_uploads
        self._bytes = self._uploads = 0

    @contextlib.contextmanager
    def admit(self, size: int) -> Iterator[None]:
        """Hold room for an upload of `size` bytes while the block runs; one that is alone is always taken.

        Raises:
          Busy: there is none.
        """
        if self._uploads and (self._uploads >= self._max_uploads or self._bytes + size > self._max_bytes):
            raise Busy(
                f"{self._uploads:,} uploads of {self._bytes / MIB:.3g} MiB are under way, and there is no room for another",
                expected=f"at most {self._max_uploads:,} at a time, together of {self._max_bytes / MIB:,.0f} MiB",
                remedy="Send it again in some seconds, as the client does by itself (Retry-After says when)",
            )
        self._uploads += 1
        self._bytes += size
        try:
            yield
        finally:
            self._uploads -= 1
            self._bytes -= size
