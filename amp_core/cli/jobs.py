"""`ampref jobs`, `ampref job`: what is being done."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from amp_core.cli.output import Json, Output, Quiet, time_left
from amp_core.cli.remote import Timeout, Url, connect, told_to_go_on, wait_for_job


def jobs(
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, quarantined or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option(help="rollout or lock.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 20,
    url: Url = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List jobs; --state quarantined shows those that need somebody to look."""
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out) as api:
        found = list(islice(api.iter_jobs(state=state, kind=kind, limit=min(limit, 500)), limit))
    out.document(found)
    out.values(job["id"] for job in found)
    if found:
        out.table(("Job", "Kind", "State", ">%", ">attempts", "Message"), [_row(job) for job in found])
    out.say("\nnext: ampref job ID" if found else "no job matches")


def job(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    wait: Annotated[bool, typer.Option("--wait", help="Show live progress until it has ended.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel it.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed, was quarantined or cancelled.")] = False,
    url: Url = None,
    timeout: Timeout = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show one job; wait for it, cancel it or try it again."""
    if cancel and (retry or wait):
        raise typer.BadParameter("choose one of --cancel, --retry and --wait", param_hint="--cancel")
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out, patient=wait) as api:
        found = api.cancel_job(job_id) if cancel else api.retry_job(job_id) if retry else api.get_job(job_id)
        if wait:
            with (
                told_to_go_on(out, lambda: [job_id]),
                out.progress(f"job {found['id']}", total=1) as progress,
            ):
                found = wait_for_job(api, found, progress, label=found["kind"], timeout=timeout)
    out.document(found)
    out.values([found["state"]])
    out.table(("Job", "Kind", "State", ">%", ">attempts", "Message"), [_row(found)])
    if found["result"]:
        out.say(
            "\nresult: " + ", ".join(f"{key} {value}" for key, value in found["result"].items() if not isinstance(value, dict))
        )
    elif found["state"] in ("failed", "quarantined", "cancelled"):
        out.say(f"\nnext: ampref job {found['id']} --retry, when what it names is mended")
    elif found["state"] in ("queued", "running"):
        out.say(f"\nnext: ampref job {found['id']} --wait")


def _row(job: dict[str, Any]) -> tuple[Any, ...]:
    message = (job.get("error") or {}).get("detail") or job.get("message")
    if job.get("eta_sec") is not None:
        message = f"{message}, {time_left(job['eta_sec'])}" if message else time_left(job["eta_sec"])
    return (
        job["id"],
        job["kind"],
        job["state"],
        f"{100 * job['progress']:.0f}",
        f"{job['attempts']}/{job['max_attempts']}",
        message,
    )
