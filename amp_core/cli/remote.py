"""What several verbs do with a running service, over HTTP and nothing else."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from amp_core.cli.output import Output
from amp_core.cli.progress import Progress
from amp_core.cli.text import time_left
from amp_core.client import ApiClient, Retry
from amp_core.errors import AmprefError


@contextmanager
def connect(url: str | None, out: Output, *, patient: bool = False) -> Iterator[ApiClient]:
    """A client of the service at `url`; each try that it repeats is a note.

    Args:
      patient: keep trying for as long as the client usually does, because there is work to lose; a question fails soon.
    """
    retry = None if patient else Retry(attempts=3, wait_initial=0.1, wait_max=1.0)
    with note_retries(out), ApiClient(url, retry=retry) as api:
        yield api


@contextmanager
def note_retries(out: Output) -> Iterator[None]:
    """Turn the client's log of the tries that it repeats into notes of this verb."""
    logger = logging.getLogger("amp_core.client.retry")
    handler = logging.Handler()
    handler.emit = lambda record: out.note(record.getMessage())  # type: ignore[method-assign]
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = [], True


class JobFailed(AmprefError):
    """A job ended without a result."""

    slug = "job-failed"
    title = "The job did not succeed"


def wait_for_job(
    api: ApiClient, job: Mapping[str, Any], progress: Progress, *, label: str, timeout: float | None, overall: str = ""
) -> dict[str, Any]:
    """Follow a job to its end, showing its progress, and return it.

    Args:
      progress: counts jobs; this one moves it from where it is by at most one.
      overall: what the bar is about, where that is more than this job.

    Raises:
      JobFailed: it did not succeed.
    """
    start = progress.amount

    def show(state: dict[str, Any]) -> None:
        text, share = f"{label}: {state.get('message') or state['state']}", float(state.get("progress") or 0.0)
        # The rate of other jobs predicts nothing of one that is at work: a plan takes a hundred times as long as a rollout.
        left = state.get("eta_sec")
        if overall:
            text = f"{overall} ({text if left is None else f'{text}, {time_left(left)}'})"
            left = math.inf if share else None
        elif left is None:
            left = math.inf
        progress.update(start + share, description=text, left=left)

    end = api.wait_for_job(str(job["id"]), timeout=timeout, progress=show)
    progress.update(start + 1)
    if end["state"] != "succeeded":
        reason = (end.get("error") or {}).get("detail") or end.get("message") or "no reason given"
        raise JobFailed(
            f"{label}: job {end['id']} ended as {end['state']}: {reason}", remedy=f"See it with: ampref job {end['id']}"
        )
    return end


@contextmanager
def note_unfinished(out: Output, list_unfinished: Callable[[], Sequence[str]]) -> Iterator[None]:
    """On Ctrl-C print that the jobs go on without this command, and how to follow them.

    Args:
      list_unfinished: returns the ids of the jobs.
    """
    try:
        yield
    except KeyboardInterrupt:
        ids = list_unfinished()
        if len(ids) == 1:
            out.note(f"the job goes on: ampref job {ids[0]} --wait")
        elif ids:
            out.note(f"{len(ids)} jobs go on: ampref job {ids[0]} --wait follows the first, ampref jobs lists them all")
        raise
