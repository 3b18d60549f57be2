"""`ampref events`: what happened, and what happens."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

from typer import BadParameter, Option

from amp_core.cli.options import Json, Quiet, Url
from amp_core.cli.output import Cell, Output
from amp_core.cli.remote import connect
from amp_core.cli.text import tier_name
from amp_core.client import ApiClient
from amp_core.strict_json import format_json


def _describe(event: Mapping[str, Any]) -> str:
    """What an event is about, on one line."""
    data = event["data"]
    subjects = {"version": (event["dataset"], data.get("version")), "job": (data.get("job_id"),)}
    kind = event["kind"].partition(".")[0]
    subject = ("==" if kind == "version" else " ").join(
        str(part) for part in subjects.get(kind, (data.get("name"), data.get("clip_id"))) if part
    )
    detail = f"{tier_name(data['tier'])}, {data.get('mode')}" if "tier" in data else data.get("reason")
    return f"{subject}: {detail}" if detail else subject


COLUMNS: dict[str, Cell] = {">Position": "position", "At": "at", "Kind": "kind", "What": _describe}


def events(
    follow: Annotated[bool, Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
    kind: Annotated[list[str] | None, Option(help="Only this kind, such as version.locked; may be repeated.")] = None,
    dataset: Annotated[str | None, Option(help="Only of this dataset.")] = None,
    robot: Annotated[str | None, Option(help="Only of this robot.")] = None,
    after: Annotated[int | None, Option(min=0, metavar="POSITION", help="Begin behind this position.")] = None,
    limit: Annotated[int, Option(min=0, max=1000, help="At most so many, the newest; with --after the first.")] = 20,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """List what happened, or follow it: clips scored, versions locked, jobs quarantined.

    With --follow and --json each event is one line of JSON.
    """
    out = Output(json_out, quiet=quiet)
    if follow and out.file is not None:
        raise BadParameter("what --follow prints has no end; write it with --json > FILE", param_hint="--json")
    filters: dict[str, Any] = {"kinds": kind or [], "dataset": dataset, "robot": robot}
    with connect(url, out, patient=follow) as api:
        page: dict[str, Any] = {"items": [], "next_after": after}
        if after is None:
            page = api.list_events(last=limit, limit=max(limit, 1), **filters)
        elif not follow:
            page = api.list_events(after=after, limit=max(limit, 1), **filters)
            if page["gap"]:
                out.warn(_describe_gap(page["gap"]))
        if follow:
            for event in page["items"]:
                _print_line(out, event)
            _follow(api, out, page["next_after"], filters)
    out.print_result(page, (str(event["position"]) for event in page["items"]))
    if page["items"]:
        out.print_table(COLUMNS, page["items"])
    out.print(f"\nnext: ampref events --follow --after {page['next_after']}" if page["items"] else "no event matches")


def _follow(api: ApiClient, out: Output, after: int, filters: Mapping[str, Any]) -> None:
    """Print each event as it comes; on Ctrl-C, how to go on."""
    position = after
    try:
        for event in api.follow_events(after=after, **filters):
            if event["kind"] == "gap":
                out.warn(_describe_gap(event))
            else:
                _print_line(out, event)
                position = event["position"]
    except KeyboardInterrupt:
        out.note(f"go on with: ampref events --follow --after {position}")
        raise


def _print_line(out: Output, event: Mapping[str, Any]) -> None:
    if out.to_stdout:
        sys.stdout.write(format_json(event) + "\n")
    elif out.quiet:
        sys.stdout.write(f"{event['position']}\n")
    else:
        out.print("  ".join(str(cell(event) if callable(cell) else event[cell]) for cell in COLUMNS.values()))
    sys.stdout.flush()


def _describe_gap(gap: Mapping[str, Any]) -> str:
    return f"events behind position {gap['after']} are missing here; the oldest that is kept is {gap['oldest']}"
