"""What runs beside the jobs, once in a while: taking jobs from silent workers, and collecting blobs that no row names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import structlog

from ampref_workers.runner import Runner

__all__ = ["Collector", "Sweeper"]

log = structlog.get_logger("ampref_workers.sweeper")


class _Periodic:
    """A thread that works every `every_sec`, until the block that it guards ends. It outlives every error."""

    name: str

    def __init__(self, every_sec: float, first_after_sec: float) -> None:
        self._every_sec = every_sec
        self._first_after_sec = first_after_sec
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=self.name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        raise NotImplementedError

    def _loop(self) -> None:
        pause = self._first_after_sec
        while not self._end.wait(pause):
            try:
                self._work()
            except Exception as error:
                log.warning(f"{self.name}_failed", error=str(error))
            pause = self._every_sec


class Sweeper(_Periodic):
    """Sweeps the job table at once and then every `every_sec`; `ring` takes the jobs that are due."""

    name = "sweeper"

    def __init__(self, runner: Runner, ring: Callable[[Sequence[str]], object], *, every_sec: float) -> None:
        super().__init__(every_sec, 0.0)
        self._runner = runner
        self._ring = ring

    def _work(self) -> None:
        wake = self._runner.sweep().wake
        if wake:
            self._ring(wake)


class Collector(_Periodic):
    """Collects garbage blobs every `every_sec`; a thread of its own, as listing a large store may outlast a lease."""

    name = "collector"

    def __init__(self, runner: Runner, *, every_sec: float, first_after_sec: float | None = None) -> None:
        # Not at once: many services start together, and none of them should begin with reading a large store.
        super().__init__(every_sec, min(every_sec, 60.0) if first_after_sec is None else first_after_sec)
        self._runner = runner

    def _work(self) -> None:
        self._runner.collect(self._end.is_set)
