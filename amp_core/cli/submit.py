"""`ampref submit`: motions to a running service."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from amp_core.cli.bulk import JOURNAL, Journal, find_motions, note_rest, submit_batches
from amp_core.cli.options import Fps, Json, Mode, Physics, Profile, QuatOrder, Quiet, Seed, Timeout, Url
from amp_core.cli.output import Cell, Output
from amp_core.cli.reading import ReadOptions, reading_options
from amp_core.cli.recipes import read_recipe
from amp_core.cli.remote import JobFailed, connect, note_unfinished, wait_for_job
from amp_core.cli.results import print_results
from amp_core.client import ApiClient
from amp_core.errors import AmprefError, Unavailable
from amp_core.tiers import Tier

_MOST_ROWS = 60


def submit(
    files: Annotated[list[Path], Argument(metavar="FILE", help="Motion files: .pkl, .npz, .json or .csv; or folders of them.")],
    wait: Annotated[bool, Option("--wait", help="Show live progress until every clip is scored.")] = False,
    robot: Annotated[str | None, Option(help="A robot that the service knows; default wildrobot.")] = None,
    mode: Mode = None,
    seed: Seed = None,
    physics: Physics = None,
    profile: Profile = None,
    recipe: Annotated[Path | None, Option(metavar="FILE", help="A whole recipe as JSON, instead of --mode and --seed.")] = None,
    tag: Annotated[list[str] | None, Option(help="A tag for the clips; may be repeated.")] = None,
    name: Annotated[str | None, Option(help="The clip's name; default: the file name without its ending.")] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    journal: Annotated[
        Path | None,
        Option(metavar="FILE", help="Where a folder's progress is kept; default: .ampref-submit.jsonl in the first folder."),
    ] = None,
    retry_refused: Annotated[
        bool, Option("--retry-refused", help="Also send what the journal has as refused, though it has not changed.")
    ] = False,
    url: Url = None,
    timeout: Timeout = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Upload motions and have them scored.

    The same file with the same recipe is known and is not scored again; with several --physics, each file is scored in
    each of them. Folders go in batches, with a journal: broken off, the same command goes on where it was.
    Exits with 1 when a file was refused or a job failed; the others are not held up.
    """
    folders = [path for path in files if path.is_dir()]
    if name is not None and (len(files) > 1 or folders):
        raise BadParameter("one name cannot be for several files", param_hint="--name")
    if recipe is not None and (mode is not None or seed is not None):
        raise BadParameter("the recipe has a mode and a seed; drop one of the two", param_hint="--recipe")
    scales = list(dict.fromkeys(physics or ()))
    out = Output(json_out, quiet=quiet)
    fields = None if recipe is None else read_recipe(recipe, scales, profile)
    if recipe is None and profile is not None:
        fields = {"gate_profile": profile}
    # By the bucket's name; None where the recipe alone decides.
    recipes: dict[str | None, dict[str, Any] | None] = {
        scale.name: (fields or {}) | {"physics": asdict(scale)} for scale in scales
    } or {None: fields}
    files = find_motions(files)
    options = reading_options(files, fps, quat_order, out)
    answers: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"robot": robot, "mode": mode, "seed": seed, "tags": tag or ()}
    with connect(url, out, patient=True) as api:
        if folders or journal is not None:
            journal = journal or folders[0] / JOURNAL
            for bucket, bucket_recipe in recipes.items():
                terms = settings | {"recipe": bucket_recipe}
                with closing(Journal(journal, terms | {"url": api.url, "fps": fps, "quat_order": quat_order})) as entries:
                    rows = submit_batches(out, api, files, options, entries, retry_refused=retry_refused, **terms)
                answers += [row | ({} if bucket is None else {"bucket": bucket}) for row in rows]
        else:
            answers = _submit_each(out, api, files, options, recipes, name=name, **settings)
        if wait:
            _wait_for_rollouts(out, api, answers, timeout)
    out.print_result(answers, dict.fromkeys(answer["clip"]["id"] for answer in answers))
    if len(answers) > _MOST_ROWS:
        _print_counts(out, answers)
    elif answers and wait:
        print_results(out, [answer["rollout"] | {"clip_name": _label(answer)} for answer in answers if answer["rollout"]])
        option = f" --profile {fields['gate_profile']}" if fields and "gate_profile" in fields else ""
        out.print(f"\n{_point_to_pages(api.url, answers)}")
        out.print(f"next: ampref clips --tier 0{option}, then ampref dataset lock NAME VERSION --tier 0{option}")
    elif answers:
        columns: dict[str, Cell] = {
            "Motion": _label,
            "Clip": lambda answer: answer["clip"]["id"],
            "Job": lambda answer: answer["job"] and answer["job"]["id"],
            "State": _describe_state,
        }
        out.print_table(columns, answers)
        out.print(f"\n{_point_to_pages(api.url, answers)}")
        out.print("next: ampref submit ... --wait follows them; ampref clips lists what is scored")
    out.exit()


def _submit_each(
    out: Output,
    api: ApiClient,
    files: Sequence[Path],
    options: ReadOptions,
    recipes: Mapping[str | None, dict[str, Any] | None],
    *,
    name: str | None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Upload files one by one; the service's answers."""
    answers: list[dict[str, Any]] = []
    index = 0

    def count() -> tuple[int, int]:
        return len({answer["file"] for answer in answers}), len(files) - index

    with note_rest(out, count), out.progress("uploading", total=len(files)) as progress:
        for index, path in enumerate(files):
            progress.update(index, description=f"uploading {path.name}")
            with out.refusing(path):
                for bucket, recipe in recipes.items():
                    answer = api.submit_clip(path, recipe=recipe, name=name, **settings, **options(path))
                    answers.append(answer | {"file": str(path)} | ({} if bucket is None else {"bucket": bucket}))
                    clip = answer["clip"]
                    for note in answer.get("notes", ()):
                        out.note(f"{path}: {note}")
                    if name is not None and clip["name"] != name:
                        out.note(f"{path}: already known as {clip['name']} ({clip['id']}); name unchanged")
    return answers


def _point_to_pages(url: str, answers: Sequence[Mapping[str, Any]]) -> str:
    """Where a browser shows what was posted: the page of one clip, or that of all."""
    clip_ids = {answer["clip"]["id"] for answer in answers}
    return f"see: {url}/clips" + (f"/{clip_ids.pop()}" if len(clip_ids) == 1 else "")


def _print_counts(out: Output, answers: Sequence[Mapping[str, Any]]) -> None:
    """What a table of so many clips would hide."""
    tiers = Counter(Tier(answer["rollout"]["tier"]).label for answer in answers if "tier" in (answer["rollout"] or {}))
    out.print(f"{len(answers):,} clips are in the service")
    for tier in Tier:
        if tiers[tier.label]:
            out.print(f"  {tier.label:<9} {tiers[tier.label]:,}")
    out.print("\nnext: ampref clips lists what is scored, ampref jobs what is not")


def _wait_for_rollouts(out: Output, api: ApiClient, answers: Sequence[dict[str, Any]], timeout: float | None) -> None:
    """Follow the jobs to their ends; each answer then has its job as it ended and its rollout in full.

    Args:
      timeout: seconds for all of them; those that are not at their end by then are told of together.
    """
    end = None if timeout is None else time.monotonic() + timeout
    unfinished: list[str] = []
    # A clip that is known needs no time; the bar and its estimate are about the rest.
    n_jobs = sum(answer["rollout"] is None for answer in answers)
    with (
        note_unfinished(out, lambda: [a["job"]["id"] for a in answers if a["job"] and a["rollout"] is None]),
        out.progress("scoring", total=n_jobs) as progress,
    ):
        for index, answer in enumerate(answers):
            overall = f"{index} of {len(answers)} clips" if len(answers) > 1 else ""
            try:
                if answer["rollout"] is None and answer["job"] is not None:
                    left = None if end is None else max(0.0, end - time.monotonic())
                    if left == 0.0 and api.get_job(answer["job"]["id"])["state"] in ("queued", "running"):
                        unfinished.append(answer["job"]["id"])
                        continue
                    answer["job"] = wait_for_job(
                        api, answer["job"], progress, label=_label(answer), timeout=left, overall=overall
                    )
                    if not (result := answer["job"].get("result") or {}).get("rollout_id"):
                        raise JobFailed(f"{_label(answer)}: job {answer['job']['id']} succeeded without a rollout")
                    answer["rollout"] = {"id": result["rollout_id"]}
                if answer["rollout"] is not None:
                    answer["rollout"] = api.get_rollout(answer["rollout"]["id"])
            except AmprefError as error:
                is_over = end is not None and time.monotonic() >= end
                if isinstance(error, Unavailable) and is_over and answer["rollout"] is None:
                    unfinished.append(answer["job"]["id"])
                else:
                    out.refuse(error)
                    answer["rollout"] = None
    if unfinished:
        command = f"ampref job {unfinished[0]} --wait" if len(unfinished) == 1 else "the same command, or ampref jobs"
        out.refuse(
            Unavailable(
                f"{len(unfinished):,} of {len(answers):,} not finished after {timeout:g} s",
                remedy=f"What is not finished goes on; to follow it: {command}",
            )
        )


def _describe_state(answer: Mapping[str, Any]) -> str | None:
    if answer["rollout"]:
        return "known, scored"
    # What the journal has of a job is no state, which would not last.
    return answer["job"] and str(answer["job"].get("state", "accepted"))


def _label(answer: Mapping[str, Any]) -> str:
    """A clip's name, and the bucket that it is scored in where one was named."""
    return f"{answer['clip']['name']} [{answer['bucket']}]" if "bucket" in answer else str(answer["clip"]["name"])
