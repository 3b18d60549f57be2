"""What several verbs do with a running service, over HTTP and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Output, Progress, number, tier_name, time_left
from amp_core.errors import AmprefError

if TYPE_CHECKING:
    from amp_core.client import ApiClient

Url = Annotated[
    str | None, typer.Option("--url", help="The service's address; overrides AMPREF_URL, default http://127.0.0.1:8000.")
]
Timeout = Annotated[float | None, typer.Option(min=0, help="Seconds to wait at most; the work goes on without us.")]

RESULT_COLUMNS = ("Motion", "Tier", ">s", ">load/mg", ">harness/mg", ">unloaded %", ">fell", ">segments")
FINDINGS_SHOWN, SUGGESTIONS_SHOWN, SEGMENTS_SHOWN = 3, 2, 3
_RETRIES = "amp_core.client.retry"


def connect(url: str | None, out: Output, *, patient: bool = False) -> ApiClient:
    """A client of the service at `url`; what it tries again is told as a note.

    Args:
      patient: keep trying for as long as the client usually does, because there is work to lose; a question fails soon.
    """
    from amp_core.client import ApiClient, Retry

    tell_retries(out)
    return ApiClient(url, retry=None if patient else Retry(attempts=3, wait_initial=0.1, wait_max=1.0))


def tell_retries(out: Output) -> None:
    """Let what the client tries again be notes of this command instead of log records."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            out.note(record.getMessage())

    logger = logging.getLogger(_RETRIES)
    logger.handlers, logger.propagate = [Notes()], False


def stop_telling_retries() -> None:
    """Undo `tell_retries`: its notes would go on where this command wrote."""
    logger = logging.getLogger(_RETRIES)
    logger.handlers, logger.propagate = [], True


class JobFailed(AmprefError):
    """A job ended without a result."""

    slug = "job-failed"
    title = "The job did not succeed"


def wait_for_job(
    api: ApiClient, job: Mapping[str, Any], progress: Progress, *, label: str, timeout: float | None, overall: str = ""
) -> dict[str, Any]:
    """Follow a job to its end, showing what it does, and return it; raises `JobFailed` unless it succeeded.

    The progress counts jobs: this one moves it from where it is by at most one. `overall` says what the bar is of, where that
    is more than this job.
    """
    started = progress.done

    def show(now: dict[str, Any]) -> None:
        state = now.get("message") or now["state"]
        text, left = f"{label}: {state}", now.get("eta_sec")
        done = started + float(now.get("progress") or 0.0)
        if overall:
            # The bar tells how long all of them take, the text how long this one does.
            own = f"{text}, {time_left(left)}" if left is not None else text
            progress.update(done, description=f"{overall} ({own})")
        else:
            progress.update(done, description=text, left=left)

    ended = api.wait_for_job(str(job["id"]), timeout=timeout, progress=show)
    progress.update(started + 1)
    if ended["state"] != "succeeded":
        facts = ended.get("error") or {}
        reason = facts.get("detail") or ended.get("message") or "no reason given"
        raise JobFailed(
            f"{label}: job {ended['id']} ended as {ended['state']}: {reason}",
            remedy=f"See it with: ampref job {ended['id']}",
        )
    return ended


@contextmanager
def told_to_go_on(out: Output, unfinished: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Say on Ctrl-C that the jobs go on without us, and how to follow them."""
    try:
        yield
    except KeyboardInterrupt:
        ids = unfinished()
        if len(ids) == 1:
            out.note(f"the job goes on: ampref job {ids[0]} --wait")
        elif ids:
            out.note(f"{len(ids)} jobs go on: ampref job {ids[0]} --wait follows the first, ampref jobs lists them all")
        raise


def result_row(rollout: Mapping[str, Any], name: str | None = None) -> tuple[Any, ...]:
    """A rollout as a row under `RESULT_COLUMNS`: mean load on the feet and p90 of the harness in units of the weight."""
    metrics = rollout["quality_metrics"]
    fell, unloaded, segments = metrics.get("fell_at_frame"), metrics.get("unloaded_frame_rate"), rollout.get("segments")
    return (
        name or rollout.get("clip_name") or rollout.get("name"),
        tier_name(rollout["tier"]),
        number(rollout.get("duration_sec")),
        number(metrics.get("mean_sum_fn_over_mg")),
        number(metrics.get("p90_stab_force_over_mg")),
        None if unloaded is None else number(100.0 * unloaded, 1),
        None if fell is None else f"frame {int(fell)}",
        None if segments is None else len(segments),
    )


def show_results(out: Output, rollouts: Sequence[Mapping[str, Any]]) -> None:
    """Rollouts as a table; below it why those that are not Tier 0 are not, and what reading the motions brought up."""
    rows = [result_row(rollout) for rollout in rollouts]
    modes = [rollout.get("mode") for rollout in rollouts]
    out.table(
        (RESULT_COLUMNS[0], "Mode", *RESULT_COLUMNS[1:]),
        [(row[0], mode, *row[1:]) for row, mode in zip(rows, modes, strict=True)],
    )
    said = []
    for rollout in rollouts:
        name = rollout.get("clip_name") or rollout["name"]
        if rollout["tier"] != 0:
            said.append(f"{name}: {rollout['tier_reason']}")
            said.extend(f"  {line}" for line in diagnosis_lines(rollout))
        notes = (rollout.get("ingest") or {}).get("notes", ())
        # A note that is a reason of the verdict was said just now.
        said.extend(f"{name}: {note}" for note in notes if note.partition(": ")[2].rstrip(".") not in rollout["tier_reason"])
    for line in ("", *said) if said else ():
        out.say(line)


def diagnosis_lines(rollout: Mapping[str, Any]) -> list[str]:
    """Why a rollout is not Tier 0, what would help, and its longest windows that are Tier 0: a few lines each at most."""
    diagnosis = rollout.get("diagnosis") or {}
    findings = diagnosis.get("findings") or ()
    # A note is worth a line only where nothing weightier was found.
    weighty = [finding for finding in findings if finding["severity"] != "note"] or findings
    lines = [f"why: {finding['message']}" for finding in weighty[:FINDINGS_SHOWN]]
    lines += [f"try: {suggestion['message']}" for suggestion in (diagnosis.get("suggestions") or ())[:SUGGESTIONS_SHOWN]]
    longest = sorted(rollout.get("segments") or (), key=lambda segment: segment["start"] - segment["end"])[:SEGMENTS_SHOWN]
    if longest and rollout.get("frames"):
        dt = rollout["duration_sec"] / rollout["frames"]
        windows = sorted((segment["start"] * dt, segment["end"] * dt) for segment in longest)
        lines.append("best segments: " + ", ".join(f"{start:.2f}–{end:.2f} s" for start, end in windows))
    return lines
