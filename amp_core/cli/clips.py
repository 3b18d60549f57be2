"""`ampref clips`, `ampref clip`: the curriculum, and one clip of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Json, Output, Quiet, number
from amp_core.cli.recipes import check_mode
from amp_core.cli.remote import RESULT_COLUMNS, Url, connect, result_row
from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.recipe import PhysicsScale

if TYPE_CHECKING:
    from amp_core.client import ApiClient

# A page of clips does not hold their segments.
COLUMNS = ("Clip", "Motion", "Mode", *RESULT_COLUMNS[1:-1], ">source s")
PAGE = 200


def _bounds(given: list[str] | None, side: str) -> dict[str, float]:
    """`["slip_rate=0.1"]` as `{"min_slip_rate": 0.1}`; the service knows the names."""
    bounds = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        try:
            bounds[f"{side}_{name.strip()}"] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise typer.BadParameter(f"{text!r} is not METRIC=NUMBER", param_hint=f"--{side}")
    return bounds


def clips(
    tier: Annotated[int | None, typer.Option(min=-1, max=1, help="0, 1, or -1 for Rejected.")] = None,
    robot: Annotated[str | None, typer.Option(help="For this robot.")] = None,
    mode: Annotated[str | None, typer.Option(help="Judge each clip by its best rollout in this mode.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Bearing this tag; may be repeated, all must be there.")] = None,
    name: Annotated[str | None, typer.Option(help="Part of the name, in any case.")] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="The variants of this clip, by its id.")] = None,
    min_duration_sec: Annotated[float | None, typer.Option(min=0, help="At least this long, as uploaded.")] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="METRIC=NUMBER", help="At least this value of a metric; may be repeated."),
    ] = None,
    maximum: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="METRIC=NUMBER", help="At most this value of a metric; may be repeated."),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="created_at, duration_sec or a metric; with - before it descending.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Every one, however many.")] = False,
    url: Url = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Query the curriculum: clips by tier, robot, mode, tags, duration and any metric."""
    check_mode(mode, of_rollouts=True)
    filters: dict[str, Any] = {
        "tier": tier,
        "robot": robot,
        "mode": mode,
        "tag": tag or None,
        "name": name,
        "parent": parent,
        "min_duration_sec": min_duration_sec,
        "sort": sort,
        **_bounds(minimum, "min"),
        **_bounds(maximum, "max"),
    }
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out) as api:
        # One more than is shown tells whether there are more.
        wanted = None if everything else limit + 1
        found = list(islice(api.iter_clips(limit=min(wanted or PAGE, PAGE), **filters), wanted))
        steps = {} if quiet else _control_steps(api, found)
    more = not everything and len(found) > limit
    found = found if everything else found[:limit]
    out.document(found)
    out.values(item["id"] for item in found)
    rows = []
    for item in found:
        rollout, source = item["rollout"], number(item["duration_sec"])
        if rollout:
            values = result_row(_timed(rollout, steps.get(item["robot"])))[1:-1]
            rows.append((item["id"], item["name"], rollout["mode"], *values, source))
        else:
            rows.append((item["id"], item["name"], None, "not yet", *([None] * (len(COLUMNS) - 5)), source))
    if rows:
        out.table(COLUMNS, rows)
    out.say(
        f"\n{len(found)} {'clip' if len(found) == 1 else 'clips'}{', and there are more: --limit N or --all' if more else ''}"
        if found
        else "no clip matches"
    )
    out.say("next: ampref clip ID" if found else "next: ampref submit MOTION... --wait, or fewer filters")


def _control_steps(api: ApiClient, clips: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds a frame of the rollouts, by robot; a robot that the service no longer has is left out."""
    steps = {}
    for robot in sorted({clip["robot"] for clip in clips}):
        try:
            steps[robot] = float(api.get_robot(robot)["control_dt"])
        except NotFound:
            continue
    return steps


def _timed(rollout: Mapping[str, Any], step: float | None) -> dict[str, Any]:
    """A listed rollout with its duration, N frames of one control step each, as `ampref score` gives it."""
    return {"duration_sec": None if step is None else rollout["frames"] * step, **rollout}


def _find(api: ApiClient, wanted: str) -> str:
    """The id of the clip with this id or, if only one has it, this name.

    Raises:
      NotFound: there is none.
      Conflict: several have the name.
    """
    try:
        return str(api.get_clip(wanted)["id"])
    except (NotFound, InputRefused):
        pass  # What cannot be an id, such as a name with a space, is refused rather than not found.
    named = [clip for clip in api.iter_clips(name=wanted, limit=PAGE) if clip["name"] == wanted]
    if not named:
        raise NotFound(f"there is no clip with the id or the name {wanted!r}", remedy="ampref clips lists what there is")
    if len(named) > 1:
        ids = ", ".join(clip["id"] for clip in named)
        raise Conflict(f"{len(named)} clips are called {wanted!r}", expected=f"one of their ids: {ids}", remedy="Give the id")
    return str(named[0]["id"])


def clip(
    clip_id: Annotated[
        str, typer.Argument(metavar="ID", help="The clip's id, as ampref clips shows it, or its name if no other has it.")
    ],
    mode: Annotated[str | None, typer.Option("--score", metavar="MODE", help="Have it scored in this mode, too.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; refused while a locked version holds it.")] = False,
    url: Url = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show one clip with its rollouts and jobs; have it scored in another mode, or delete it."""
    if delete and mode is not None:
        raise typer.BadParameter("a clip is either scored or deleted", param_hint="--delete")
    if not clip_id.strip():
        raise typer.BadParameter("give a clip's id or name", param_hint="ID")
    check_mode(mode, "--score")
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out) as api:
        clip_id = _find(api, clip_id)
        if delete:
            api.delete_clip(clip_id)
            out.document({"id": clip_id, "deleted": True})
            out.say(f"clip {clip_id} is deleted")
            return
        if mode is not None:
            made = api.add_rollout(clip_id, mode=mode)
            out.document(made)
            job = made["job"]
            out.values([job["id"]] if job else [])
            if made["rollout"]:
                out.say("that is known already: see ampref clip " + clip_id)
            elif job:
                out.say(f"job {job['id']} is {job['state']}\nnext: ampref job {job['id']} --wait")
            return
        found = api.get_clip(clip_id)
        steps = {} if quiet else _control_steps(api, [found])
    out.document(found)
    out.values(rollout["id"] for rollout in found["rollouts"])
    facts: tuple[str, ...] = (
        "name",
        "robot",
        "source_digest",
        "source_format",
        "frames_in",
        "fps_in",
        "duration_sec",
        "tags",
        "created_at",
    )
    if found["augmentation"]:
        facts += ("parent", "parent_digest", "augmentation", "lineage")
    out.table(
        ("Clip", found["id"]),
        [(_LABELS.get(key, key), ", ".join(value) if isinstance(value := found[key], list) else value) for key in facts],
    )
    out.say()
    if found["rollouts"]:
        step = steps.get(found["robot"])
        # A column that says the same in every line is in nobody's way when it is left out.
        scaled = any(r["bucket"] != PhysicsScale().name for r in found["rollouts"])
        rows = [
            (r["id"], r["mode"], *((r["bucket"],) if scaled else ()), *result_row(_timed(r, step))[1:-1])
            for r in found["rollouts"]
        ]
        out.table(("Rollout", "Mode", *(("Bucket",) if scaled else ()), *RESULT_COLUMNS[1:-1]), rows)
        out.say()
        for rollout in found["rollouts"]:
            out.say(f"{rollout['id']}: {rollout['tier_reason']}")
        out.say()
    out.table(
        ("Job", "State", ">attempts", "Message"), [(j["id"], j["state"], j["attempts"], _message(j)) for j in found["jobs"]]
    )


_LABELS = {"duration_sec": "duration_sec (source)"}


def _message(job: dict[str, Any]) -> str | None:
    return (job.get("error") or {}).get("detail") or job.get("message")
