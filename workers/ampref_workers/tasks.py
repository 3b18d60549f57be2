"""The only task: hear the bell, run the oldest job that is due."""

from __future__ import annotations

from collections.abc import Callable

import structlog

__all__ = ["ring_task"]

log = structlog.get_logger("ampref_workers.tasks")


def ring_task(run_once: Callable[[], str]) -> Callable[[str], None]:
    """The task around `run_once`. It never raises: a task that does may be delivered again, and again."""

    def ring(job_id: str = "") -> None:
        try:
            log.debug("rung", rung_for=job_id, ended=run_once())
        except Exception:  # MemoryError included, which would end the worker, and again after every restart
            log.exception("ring_failed", rung_for=job_id)

    return ring
