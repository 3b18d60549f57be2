"""The task around a runner."""

from __future__ import annotations

import pytest

from ampref_workers.app import ring_task


def test_a_ring_runs_one_job() -> None:
    ran: list[int] = []
    ring_task(lambda: str(ran.append(1)))("job_1")
    assert ran == [1]


@pytest.mark.parametrize("error", [MemoryError, ValueError])
def test_a_ring_never_raises(error: type[Exception]) -> None:
    calls: list[int] = []

    def run_once() -> str:
        calls.append(1)
        raise error

    ring_task(run_once)("job_1")
    assert calls == [1]
