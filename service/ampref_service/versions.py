"""Locking a version, and finding one by the names that lead to it."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from amp_core.errors import Conflict, InputRefused, IntegrityError, NotFound
from amp_core.tiers import GATE_PROFILES
from ampref_service.catalog import Session, datasets, job_rows, locking, selection
from ampref_service.catalog.records import Job, JobTerms, Select, Version
from ampref_service.services import Services

_MAX_LISTED = 5  # Clips that an error names.
_ROBOT = "wildrobot"  # of a selection that no clip fits


def request_lock(
    services: Services,
    dataset: str,
    version: str,
    select: Select,
    waivers: Sequence[Mapping[str, str]],
    terms: JobTerms,
    *,
    actor: str,
) -> tuple[Version, Job, dict[str, Any]]:
    """Reserve a version's name and queue the job that locks what `select` finds now.

    Returns the version, the job, and how many clips are not in it: `pending_clips` that fit by robot, tags and names and are
    still being scored, the first of them by name (`pending_names`), and `other_profile_clips` that another gate profile alone
    passed.

    Raises:
      NotFound: the robot is not installed.
      InputRefused: the selection is empty, or names clips or buckets that hold nothing.
      Conflict: the version is locked or being locked, the dataset is of another robot, or a clip that the selection names has
        no result yet.
    """
    services.robot(select.robot)
    with services.catalog.session() as session:
        robot_digest = _check_selection(session, select)
    with services.catalog.begin() as session:
        row, job = locking.begin_version(
            session,
            dataset,
            version,
            select,
            waivers=waivers,
            robot_digest=robot_digest,
            limit_sec=services.settings.lock_limit_sec,
            terms=terms,
            actor=actor,
        )
        counts = {"pending_clips": selection.pending_clips, "other_profile_clips": selection.count_other_clips}
        absences: dict[str, Any] = {name: count(session, select) for name, count in counts.items()}
        return row, job, absences | {"pending_names": selection.list_pending(session, select, _MAX_LISTED)}


def name_robot(services: Services, dataset: str, select: Select, is_allowed: Callable[[str], bool]) -> Select:
    """A selection with its robot: where it names none, the dataset's, or that of the clips that fit by tags and names.

    Args:
      is_allowed: whether who asks may use a robot.

    Raises:
      InputRefused: those clips are of several robots.
    """
    if select.robot:
        return select
    with services.catalog.session() as session:
        robots = locking.list_robots(session, dataset) or selection.list_robots(session, select)
    robots = [robot for robot in robots if is_allowed(robot)] or robots
    if len(robots) > 1:
        raise InputRefused(
            f"the clips that fit are of {len(robots)} robots: {', '.join(robots)}",
            key="select.robot",
            expected="one robot in a version",
            remedy=f"Name it, such as {robots[0]} (--robot)",
        )
    return replace(select, robot=robots[0] if robots else _ROBOT)


def _check_selection(session: Session, select: Select) -> str:
    """The digest of the first member's robot.

    Raises:
      InputRefused: nothing is selected.
      Conflict: a clip that is named has no result yet.
    """
    missing = selection.missing_clips(session, select)
    if missing:
        raise InputRefused(
            f"there is no clip {_name_first([repr(clip) for clip in missing])} for the robot {select.robot!r}",
            key="select.clips",
            expected="ids or names of clips",
            remedy="ampref clips (GET /v1/clips) lists what there is",
        )
    empty, filled_buckets = selection.missing_buckets(session, select)
    if empty and filled_buckets:
        raise InputRefused(
            f"nothing of the selection is in the bucket {', '.join(repr(scale.name) for scale in empty)}",
            key="select.buckets",
            expected=f"of {', '.join(scale.name for scale in filled_buckets)}",
            remedy="Score the clips in it (ampref submit --physics, or POST /v1/clips with a recipe), or leave it out",
        )
    first = next(selection.select_members(session, select, chunk=1), None)
    unscored = selection.unscored_clips(session, select) if select.clips else {}
    if unscored:
        raise Conflict(
            "not every clip that is named can be in it: "
            + _name_first([f"{clip!r} {reason}" for clip, reason in unscored.items()]),
            key="select.clips",
            expected="a result of each clip that is named",
            remedy="Wait until they are scored (ampref jobs, GET /v1/jobs), or do not name them",
        )
    if first is None:
        near = ", ".join(
            f"{name} is {tier.label} by {profile}" for name, tier, profile in selection.list_tiers(session, select, _MAX_LISTED)
        )
        raise InputRefused(
            f"the selection is empty{': ' if near else ''}{near}",
            key="select",
            expected="at least one rollout of the tiers asked for",
            remedy=_suggest_profile(session, select)
            + "Widen it (--tier, --tag, --clip, --segments), or wait for the clips' jobs"
            + _name_listing(select),
        )
    return first.robot_digest


def _name_first(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MAX_LISTED:,} more" if len(texts) > _MAX_LISTED else ""
    return ", ".join(texts[:_MAX_LISTED]) + more


def _suggest_profile(session: Session, select: Select) -> str:
    """How to take the rollouts that other gate profiles judged, where the same selection of them is not empty."""
    alternatives = [
        profile
        for profile in GATE_PROFILES
        if select.recipe is None
        and profile != select.profile
        and next(selection.select_members(session, replace(select, gate_profile=profile), chunk=1), None) is not None
    ]
    if not alternatives:
        return ""
    return f"Other gate profiles passed some: --profile {' or '.join(alternatives)} (select.gate_profile). "


def _name_listing(select: Select) -> str:
    """The query that lists what would go in; no query asks about windows, buckets and recipes."""
    if select.recipe is not None or select.buckets is not None or select.segments:
        return ""
    query = {"tier": str(select.tiers[0])} if len(select.tiers) == 1 else {}
    query |= {"gate_profile": select.profile, "robot": select.robot}
    query |= {} if select.mode is None else {"mode": select.mode}
    pairs = [*query.items(), *(("tag", tag) for tag in select.tags)]
    options = " ".join(f"--{'profile' if name == 'gate_profile' else name} {shlex.quote(value)}" for name, value in pairs)
    return f"; ampref clips {options} (GET /v1/clips?{urlencode(pairs)}) lists what would go in"


def find_version(session: Session, dataset: str, version: str) -> Version:
    """A locked version by its exact number, `latest` or an alias.

    Raises:
      NotFound: there is none. Where it was to be locked, the error names the job and says what became of it.
    """
    try:
        return datasets.get_version(session, dataset, version)
    except NotFound:
        lock_jobs = job_rows.list_jobs(session, kind="lock", limit=500).items
        job = next((job for job in lock_jobs if (job.dataset, job.version) == (dataset, version)), None)
        if job is None:
            raise
    name = f"{dataset}=={version}"
    if not job.finished:
        raise NotFound(
            f"{name} is not there yet: its lock job {job.id} is {job.state}",
            remedy=f"Follow ampref job {job.id} --wait (GET /v1/jobs/{job.id}); the version appears when it has succeeded",
        )
    reason = f" ({job.error['detail']})" if job.error and "detail" in job.error else ""
    raise NotFound(
        f"{name} is not there: its lock job {job.id} has ended as {job.state}{reason}",
        remedy="Mend what it names, and lock the version again",
    )


def restore_version(services: Services, dataset: str, version: str, *, actor: str) -> Version:
    """Take the archive of a version back, once the store has its features.

    Raises:
      NotFound: there is no such version.
      Conflict: the store lacks them, or has other bytes.
    """
    with services.catalog.session() as session:
        row = datasets.get_version(session, dataset, version)
    for file in row.files if row.archived else ():
        try:
            with tempfile.TemporaryDirectory(dir=services.settings.data_dir) as folder:
                services.blobs.fetch(file.digest, Path(folder) / "features")
                # Put again, it is young: the collector leaves it alone until the row names it.
                services.blobs.put_file(Path(folder) / "features")
        except (NotFound, IntegrityError) as error:
            raise Conflict(
                f"the store does not have {file.name} of {dataset}=={version} ({file.digest}): {error.what}",
                expected=f"{file.size} bytes with that SHA-256",
                remedy="Lock the same selection under another number, which gives the same bytes, or restore the file from a "
                "backup; then try again",
            ) from None
    with services.catalog.begin() as session:
        return datasets.unarchive_version(session, dataset, version, actor=actor)
