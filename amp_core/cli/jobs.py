"""`ampref jobs`, `ampref job`: what is being done."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from amp_core.cli.options import Json, Quiet, Timeout, Url
from amp_core.cli.output import Cell, Output
from amp_core.cli.remote import connect, note_unfinished, wait_for_job
from amp_core.cli.text import time_left


def job_message(job: dict[str, Any]) -> str | None:
    """Why a job failed, or what it is at."""
    message: str | None = (job.get("error") or {}).get("detail") or job.get("message")
    return message


COLUMNS: dict[str, Cell] = {
    **{"Job": "id", "Kind": "kind", "State": "state"},
    ">%": lambda job: f"{100 * job['progress']:.0f}",
    ">attempts": lambda job: f"{job['attempts']}/{job['max_attempts']}",
    "Message": lambda job: ", ".join(filter(None, (job_message(job), time_left(job.get("eta_sec"))))) or None,
}


def jobs(
    state: Annotated[str | None, Option(help="queued, running, succeeded, failed, quarantined or cancelled.")] = None,
    kind: Annotated[str | None, Option(help="rollout or lock.")] = None,
    limit: Annotated[int, Option(min=1, max=10**9, help="At most so many, the newest first.")] = 20,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """List jobs; --state quarantined shows those that need somebody to look."""
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        page = list(islice(api.iter_jobs(state=state, kind=kind, limit=min(limit, 500)), limit))
    out.print_result(page, (job["id"] for job in page))
    if page:
        out.print_table(COLUMNS, page)
    out.print("\nnext: ampref job ID" if page else "no job matches")


def job(
    job_id: Annotated[str, Argument(metavar="ID", help="The job's id.")],
    wait: Annotated[bool, Option("--wait", help="Show live progress until it has ended.")] = False,
    cancel: Annotated[bool, Option("--cancel", help="Cancel it.")] = False,
    retry: Annotated[bool, Option("--retry", help="Try again what failed, was quarantined or cancelled.")] = False,
    url: Url = None,
    timeout: Timeout = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show one job; wait for it, cancel it or try it again."""
    if cancel and (retry or wait):
        raise BadParameter("choose one of --cancel, --retry and --wait", param_hint="--cancel")
    out = Output(json_out, quiet=quiet)
    with connect(url, out, patient=wait) as api:
        job = api.cancel_job(job_id) if cancel else api.retry_job(job_id) if retry else api.get_job(job_id)
        if wait:
            with note_unfinished(out, lambda: [job_id]), out.progress(f"job {job['id']}", total=1) as progress:
                job = wait_for_job(api, job, progress, label=f"{job['kind']} job", timeout=timeout)
    out.print_result(job, [job["state"]])
    out.print_table(COLUMNS, [job])
    if job["result"]:
        result = (f"{key} {value}" for key, value in job["result"].items() if not isinstance(value, dict))
        out.print("\nresult: " + ", ".join(result))
    elif job["state"] in ("failed", "quarantined", "cancelled"):
        command = f"ampref job {job['id']} --retry" if job["kind"] == "rollout" else "ampref dataset lock NAME VERSION"
        out.print(f"\nnext: {command}, when what it names is mended")
    elif job["state"] in ("queued", "running"):
        out.print(f"\nnext: ampref job {job['id']} --wait")
