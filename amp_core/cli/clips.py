"""`ampref clips`, `ampref clip`: the curriculum, and one clip of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from amp_core.cli.jobs import job_message
from amp_core.cli.options import Json, Profile, Quiet, Url, mode_option, parse_profile, rollout_mode_option
from amp_core.cli.output import Output
from amp_core.cli.remote import connect, note_retries
from amp_core.cli.results import RESULT_COLUMNS
from amp_core.cli.text import counted, number, size
from amp_core.client import ApiClient, load_clips
from amp_core.commands import quote_path
from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.recipe import GATE_PROFILE, PhysicsScale
from amp_core.tiers import Tier

PAGE = 200
MOST_ROWS = 10**9
CLIP_KEYS = ("name", "robot", "source_digest", "source_format", "frames_in", "fps_in", "duration_sec", "tags", "created_at")
VARIANT_KEYS = ("parent", "parent_digest", "augmentation", "lineage")


def clips(
    tier: Annotated[int | None, Option(min=-1, max=1, help="0, 1, or -1 for Rejected.")] = None,
    robot: Annotated[str | None, Option(help="For this robot.")] = None,
    mode: Annotated[str | None, rollout_mode_option(help="Judge each clip by its best rollout in this mode.")] = None,
    profile: Annotated[
        str | None,
        Option(parser=parse_profile, metavar="NAME", help="Judge each clip by its best rollout by this gate profile."),
    ] = None,
    tag: Annotated[list[str] | None, Option(help="Bearing this tag; may be repeated, all must be there.")] = None,
    name: Annotated[str | None, Option(help="Part of the name, in any case.")] = None,
    parent: Annotated[str | None, Option(metavar="ID", help="The variants of this clip, by its id.")] = None,
    min_duration_sec: Annotated[float | None, Option(min=0, help="At least this long, as uploaded.")] = None,
    minimum: Annotated[
        list[str] | None,
        Option("--min", metavar="METRIC=NUMBER", help="At least this value of a metric; may be repeated."),
    ] = None,
    maximum: Annotated[
        list[str] | None,
        Option("--max", metavar="METRIC=NUMBER", help="At most this value of a metric; may be repeated."),
    ] = None,
    sort: Annotated[str | None, Option(help="created_at, duration_sec or a metric; with - before it descending.")] = None,
    limit: Annotated[
        int | None,
        Option(min=1, max=MOST_ROWS, help="At most so many; default 50, with --fetch or --pin every one.", show_default=False),
    ] = None,
    unlimited: Annotated[bool, Option("--all", help="Every one, however many.")] = False,
    fetch: Annotated[
        Path | None,
        Option(metavar="DIR", help="Fetch their arrays, verified, as DIR/NAME.npz; what is cached is not sent again."),
    ] = None,
    pin: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write the list with the arrays' digests into FILE, for --from on another node."),
    ] = None,
    pinned: Annotated[
        Path | None, Option("--from", metavar="FILE", help="The clips of a list that --pin wrote, instead of a query.")
    ] = None,
    cache_dir: Annotated[
        Path | None, Option(help="Where arrays are kept; overrides AMPREF_CACHE, default ~/.cache/ampref.")
    ] = None,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Query the curriculum: clips by tier, robot, mode, tags, duration and any metric; fetch and pin their arrays."""
    bounds = _parse_bounds(minimum or (), "min") | _parse_bounds(maximum or (), "max")
    filters: dict[str, Any] = {"tier": tier, "robot": robot, "mode": mode, "gate_profile": profile, "tag": tag or None}
    filters |= {"name": name, "parent": parent, "sort": sort}
    out = Output(json_out, quiet=quiet)
    if fetch is not None or pin is not None or pinned is not None:
        query: dict[str, Any] = {
            **filters,
            "min_duration_sec": min_duration_sec,
            "limit": None if unlimited else limit,
            **bounds,
        }
        query["tags"] = query.pop("tag") or ()
        if pinned is not None and (extra := [key for key, value in query.items() if value]):
            raise BadParameter(f"a pinned list takes no filters such as {extra[0]}", param_hint="--from")
        _fetch_clips(out, query | {"pinned": pinned, "url": url, "cache_dir": cache_dir}, fetch, pin)
        return
    limit = limit or 50
    with connect(url, out) as api:
        # One more than is shown tells whether there are more.
        count = None if unlimited else limit + 1
        matches = api.iter_clips(limit=min(count or PAGE, PAGE), min_duration_sec=min_duration_sec, **filters, **bounds)
        page = list(islice(matches, count))
        steps = {} if quiet else _control_steps(api, page)
    has_more = not unlimited and len(page) > limit
    page = page[:limit] if has_more else page
    out.print_result(page, (clip["id"] for clip in page))
    if not page:
        out.print("no clip matches\nnext: ampref submit MOTION... --wait, or fewer filters")
        return
    rows, no_cells = [], ["not yet", *[None] * (len(RESULT_COLUMNS) - 1)]
    columns = ("mode", *_profile_key((clip["rollout"] or {}).get("gate_profile", GATE_PROFILE) for clip in page))
    for clip in page:
        rollout = clip["rollout"]
        cells = _rollout_cells(rollout, steps.get(clip["robot"])) if rollout else no_cells
        origin = (rollout and rollout.get(column) for column in columns)
        rows.append((clip["id"], clip["name"], *origin, *cells, number(clip["duration_sec"])))
    out.print_table(("Clip", "Motion", *(_HEADERS[column] for column in columns), *RESULT_COLUMNS, ">source s"), rows)
    out.print(f"\n{counted(len(page), 'clip')}{', and there are more: --limit N or --all' if has_more else ''}")
    out.print("next: ampref clip ID")


def _fetch_clips(out: Output, options: Mapping[str, Any], folder: Path | None, pin: Path | None) -> None:
    """Bring the arrays of a query's or a list's clips to this machine; copy them into a folder and pin them if asked to."""
    with (
        note_retries(out),
        out.progress("fetching arrays") as progress,
        warnings.catch_warnings(record=True, action="always") as caught,
    ):
        clips = load_clips(**options, progress=lambda amount, total: progress.update(amount, total=total))
    for warning in caught:
        out.warn(str(warning.message))
    # Nothing leaves nothing behind: neither an empty folder nor a list of no clips.
    if not clips:
        folder = pin = None
    paths = [clip.path for clip in clips] if folder is None else clips.save(folder)
    if pin is not None:
        clips.pin(pin)
    items = [clip.to_dict() | {"file": str(path)} for clip, path in zip(clips, paths, strict=True)]
    document: dict[str, Any] = {
        "digest": clips.digest,
        "query": clips.query,
        "robots": clips.robots,
        "gate_profiles": clips.gate_profiles,
    }
    document |= {"downloaded_bytes": clips.downloaded_bytes, "pin": None if pin is None else str(pin), "clips": items}
    out.print_result(document, map(str, paths))
    if not clips:
        out.print("no scored clip matches\nnext: ampref submit MOTION... --wait, or fewer filters")
        return
    columns = ("mode", *_profile_key(clips.gate_profiles))
    rows = [
        (
            *(clip.name, clip.robot, *(getattr(clip, column) for column in columns)),
            *(Tier(clip.tier).label, str(clip.frames), clip.arrays_digest[7:19]),
        )
        for clip in clips
    ]
    headers = (_HEADERS[column] for column in columns)
    out.print_table(("Motion", "Robot", *headers, "Tier", ">frames", "SHA-256"), rows)
    source = f"{size(clips.downloaded_bytes)} downloaded" if clips.downloaded_bytes else "the cache had everything"
    out.print(f"\n{counted(len(clips), 'clip')}; {source}, verified against the digests of the list {clips.digest}")
    if folder is not None:
        out.print(f"arrays: {folder}")
    if pin is not None:
        out.print(f"pinned: {pin}")
        out.print(f"next, on any node: ampref clips --from {quote_path(pin)} --fetch DIR, or load_clips(pinned={str(pin)!r})")


_HEADERS = {"mode": "Mode", "gate_profile": "Profile", "bucket": "Bucket"}


def _profile_key(profiles: Iterable[str]) -> tuple[str, ...]:
    """The column of the gate profile, unless all verdicts in a list are by the usual one."""
    return ("gate_profile",) if any(profile != GATE_PROFILE for profile in profiles) else ()


def _parse_bounds(texts: Sequence[str], side: str) -> dict[str, float]:
    """`["slip_rate=0.1"]` as `{"min_slip_rate": 0.1}`; the service checks the metrics' names."""
    bounds = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            bounds[f"{side}_{name.strip()}"] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise BadParameter(f"{text!r} is not METRIC=NUMBER", param_hint=f"--{side}")
    return bounds


def _rollout_cells(rollout: Mapping[str, Any], step: float | None) -> list[Any]:
    """What a listed rollout has under `RESULT_COLUMNS`; N frames take N control steps of the robot, in s."""
    duration = None if step is None else rollout["frames"] * step
    return [show({"duration_sec": duration, **rollout}) for show in RESULT_COLUMNS.values()]


def _control_steps(api: ApiClient, clips: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds a frame of the rollouts, by robot; a robot that the service no longer has is left out."""
    steps = {}
    for robot in sorted({clip["robot"] for clip in clips}):
        try:
            steps[robot] = float(api.get_robot(robot)["control_dt"])
        except NotFound:
            continue
    return steps


def find_clip(api: ApiClient, clip: str) -> str:
    """The id of the clip with this id or, if only one has it, this name.

    Raises:
      NotFound: there is none.
      Conflict: several have the name.
    """
    try:
        return str(api.get_clip(clip)["id"])
    except (NotFound, InputRefused):
        pass  # What cannot be an id, such as a name with a space, is refused rather than not found.
    matches = [match for match in api.iter_clips(name=clip, limit=PAGE) if match["name"] == clip]
    if not matches:
        raise NotFound(f"there is no clip with the id or the name {clip!r}", remedy="ampref clips lists what there is")
    if len(matches) > 1:
        ids = ", ".join(match["id"] for match in matches)
        raise Conflict(f"{len(matches)} clips are called {clip!r}", expected=f"one of their ids: {ids}", remedy="Give the id")
    return str(matches[0]["id"])


def clip(
    clip_id: Annotated[
        str, Argument(metavar="ID", help="The clip's id, as ampref clips shows it, or its name if no other has it.")
    ],
    mode: Annotated[str | None, mode_option("--score", help="Have it scored in this mode, too.")] = None,
    profile: Profile = None,
    delete: Annotated[bool, Option("--delete", help="Delete it; refused while a locked version holds it.")] = False,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show one clip with its rollouts and jobs; have it scored in another mode, or delete it."""
    if delete and mode is not None:
        raise BadParameter("a clip is either scored or deleted", param_hint="--delete")
    if profile is not None and mode is None:
        raise BadParameter("a profile is for scoring; give --score MODE, too", param_hint="--profile")
    if not clip_id.strip():
        raise BadParameter("give a clip's id or name", param_hint="ID")
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        clip_id = find_clip(api, clip_id)
        if delete:
            api.delete_clip(clip_id)
            out.print_result({"id": clip_id, "deleted": True})
            out.print(f"clip {clip_id} is deleted")
        elif mode is not None:
            answer = api.add_rollout(clip_id, mode=mode, recipe={"gate_profile": profile} if profile else None)
            job = answer["job"]
            out.print_result(answer, [job["id"]] if job else [])
            if answer["rollout"]:
                out.print(f"that is known already: see ampref clip {clip_id}")
            elif job:
                out.print(f"job {job['id']} is {job['state']}\nnext: ampref job {job['id']} --wait")
        else:
            details = api.get_clip(clip_id)
            _print_clip(out, details, {} if quiet else _control_steps(api, [details]))


def _print_clip(out: Output, clip: Mapping[str, Any], steps: Mapping[str, float]) -> None:
    rollouts = clip["rollouts"]
    out.print_result(clip, (rollout["id"] for rollout in rollouts))
    rows = {key: clip[key] for key in CLIP_KEYS + (VARIANT_KEYS if clip["augmentation"] else ())}
    rows |= {"tags": ", ".join(clip["tags"])}
    labels = {"duration_sec": "duration_sec (source)"}
    out.print_table(("Clip", clip["id"]), ((labels.get(key, key), number(value)) for key, value in rows.items()))
    out.print()
    if rollouts:
        # A column that says the same in every line is left out.
        bucket = ("bucket",) if any(rollout["bucket"] != PhysicsScale().name for rollout in rollouts) else ()
        keys, step = ("mode", "gate_profile", *bucket), steps.get(clip["robot"])
        out.print_table(
            ("Rollout", *(_HEADERS[key] for key in keys), *RESULT_COLUMNS),
            [(rollout["id"], *(rollout.get(key) for key in keys), *_rollout_cells(rollout, step)) for rollout in rollouts],
        )
        out.print()
        for rollout in rollouts:
            out.print(f"{rollout['id']}: {rollout['tier_reason']}")
        out.print()
    out.print_table({"Job": "id", "State": "state", ">attempts": "attempts", "Message": job_message}, clip["jobs"])
