"""The sweeper: it takes jobs from silent workers, and rings for jobs that no worker heard of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

import structlog

from service.jobs import Swept

__all__ = ["Sweeper"]

log = structlog.get_logger("workers.sweeper")


class Sweeps(Protocol):
    """What can be swept: a `Runner`."""

    def sweep(self) -> Swept: ...


class Sweeper:
    """A thread that sweeps at once and then every `every_sec`, until the block that it guards ends. It outlives every error."""

    def __init__(self, runner: Sweeps, ring: Callable[[Sequence[str]], object], *, every_sec: float) -> None:
        self._runner = runner
        self._ring = ring
        self._every_sec = every_sec
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sweeper", daemon=True)

    def __enter__(self) -> Sweeper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            try:
                wake = self._runner.sweep().wake
                if wake:
                    self._ring(wake)
            except Exception as error:
                log.warning("sweep_failed", error=str(error))
            if self._over.wait(self._every_sec):
                return
