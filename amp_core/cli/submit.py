"""`ampref submit`: motions to a running service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from amp_core.cli.output import Json, Output, Quiet
from amp_core.cli.reading import reading_options
from amp_core.cli.recipes import Physics, check_mode, check_physics, parse_physics, read_recipe
from amp_core.cli.remote import Timeout, Url, connect, show_results, told_to_go_on, wait_for_job
from amp_core.errors import AmprefError


def submit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Motion files: .pkl, .npz, .json or .csv.")],
    wait: Annotated[bool, typer.Option("--wait", help="Show live progress until every clip is scored.")] = False,
    robot: Annotated[str | None, typer.Option(help="A robot that the service knows; default wildrobot.")] = None,
    mode: Annotated[str | None, typer.Option(help="auto, rollout, tracked or teacher_forced; the default is auto.")] = None,
    seed: Annotated[int | None, typer.Option(help="The recipe's seed.")] = None,
    physics: Physics = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A whole recipe as JSON, instead of --mode and --seed.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag for the clips; may be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="The clip's name; default: the file name without its ending.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second, for .csv files and others that do not hold it.")] = None,
    quat_order: Annotated[str | None, typer.Option(help="Quaternion order, wxyz or xyzw; must be given for .csv.")] = None,
    url: Url = None,
    timeout: Timeout = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload motions and have them scored.

    The same file with the same recipe is known and is not scored again; with several --physics, each file is scored in
    each of them. Exits with 1 when a file was refused or a job failed; the others are not held up.
    """
    if name is not None and len(files) > 1:
        raise typer.BadParameter("one name cannot be for several files", param_hint="--name")
    if recipe is not None and (mode is not None or seed is not None):
        raise typer.BadParameter("the recipe has a mode and a seed; drop one of the two", param_hint="--recipe")
    check_mode(mode)
    scales = parse_physics(physics or ())
    out = Output(as_json=as_json, quiet=quiet)
    whole = None if recipe is None else read_recipe(recipe)
    if whole is not None and recipe is not None:
        check_physics(whole, scales, recipe)
    recipes: list[tuple[str | None, dict[str, Any] | None]] = [(None, whole)]
    if scales:
        recipes = [(scale.name, (whole or {}) | {"physics": asdict(scale)}) for scale in scales]
    options = reading_options(files, fps, quat_order, out)
    submitted: list[dict[str, Any]] = []
    failed = 0
    with connect(url, out, patient=True) as api:
        with out.progress("uploading", total=len(files)) as progress:
            for done, path in enumerate(files):
                progress.update(done, description=f"uploading {path.name}")
                for bucket, facts in recipes:
                    try:
                        answer = api.submit_clip(
                            path,
                            name=name,
                            robot=robot,
                            mode=mode,
                            seed=seed,
                            tags=tag or (),
                            recipe=facts,
                            **options(path),
                        )
                    except AmprefError as error:
                        if error.slug == "unavailable":
                            raise
                        error.file = str(path)
                        out.error(error)
                        failed += 1
                        break
                    submitted.append(answer | {"file": str(path)} | ({} if bucket is None else {"bucket": bucket}))
                    known = answer["clip"]
                    if name is not None and known["name"] != name:
                        out.note(f"{path}: already known as {known['name']} ({known['id']}); name unchanged")
        if wait:
            with (
                told_to_go_on(out, lambda: [a["job"]["id"] for a in submitted if a["job"] and a["rollout"] is None]),
                out.progress("scoring", total=len(submitted)) as progress,
            ):
                # What is known needs no time; the bar and its estimate are about the rest.
                progress.update(total=sum(answer["rollout"] is None for answer in submitted))
                for done, answer in enumerate(submitted):
                    overall = f"{done} of {len(submitted)} clips" if len(submitted) > 1 else ""
                    try:
                        if answer["rollout"] is None and answer["job"] is not None:
                            label = _label(answer)
                            answer["job"] = wait_for_job(
                                api, answer["job"], progress, label=label, timeout=timeout, overall=overall
                            )
                            answer["rollout"] = {"id": answer["job"]["result"]["rollout_id"]}
                        if answer["rollout"] is not None:
                            answer["rollout"] = api.get_rollout(answer["rollout"]["id"])
                    except AmprefError as error:
                        out.error(error)
                        failed += 1
    out.document(submitted)
    out.values(dict.fromkeys(answer["clip"]["id"] for answer in submitted))
    _print(out, submitted, wait)
    if failed:
        raise typer.Exit(1)


def _label(answer: Mapping[str, Any]) -> str:
    """A clip's name, and the bucket that it was to be scored in where one was named."""
    return f"{answer['clip']['name']} [{answer['bucket']}]" if "bucket" in answer else str(answer["clip"]["name"])


def _print(out: Output, submitted: list[dict[str, Any]], waited: bool) -> None:
    if not submitted:
        return
    if waited:
        show_results(out, [answer["rollout"] | {"clip_name": _label(answer)} for answer in submitted if answer["rollout"]])
        out.say("\nnext: ampref clips --tier 0, then ampref dataset lock NAME VERSION --tier 0")
    else:
        out.table(
            ("Motion", "Clip", "Job", "State"),
            [
                (
                    _label(answer),
                    answer["clip"]["id"],
                    answer["job"]["id"] if answer["job"] else None,
                    "known, scored" if answer["rollout"] else answer["job"]["state"] if answer["job"] else None,
                )
                for answer in submitted
            ],
        )
        out.say("\nnext: ampref submit ... --wait follows them; ampref clips lists what is scored")
