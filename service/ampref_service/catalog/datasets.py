"""Datasets, their versions, and the names that lead to them.

A version is begun (`locking`: the name is taken, nothing is visible), and then published in one transaction with its members
and files,
or abandoned, which frees its name. From then on the database itself refuses to change it, but for yanking.

`latest` is the highest locked version that is not yanked, by semantic versioning, as package indexes do it: a correction of
an old
version that is locked later does not become `latest`, and a pre-release does only when there is nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, RowMapping, delete, distinct, exc, exists, func, insert, or_, select, update
from sqlalchemy import Select as Query

from amp_core.dataset.names import check_alias, check_dataset_name, check_version
from amp_core.dataset.weights import WEIGHT_METRICS
from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.lineage import LINEAGE_COLUMNS
from amp_core.readiness import check_waivers
from amp_core.recipe import PhysicsScale
from ampref_service.catalog import audit, job_rows, rollouts
from ampref_service.catalog.engine import Session, new_id, now
from ampref_service.catalog.records import (
    Dataset,
    Job,
    Select,
    SelectedRollout,
    Version,
    VersionBucket,
    VersionFile,
    VersionMember,
)
from ampref_service.catalog.sources import VERIFICATION
from ampref_service.catalog.tables import (
    METRIC_COLUMNS,
    aliases,
    clip_tags,
    clips,
    curriculum,
    datasets,
    jobs,
    recipes,
    segments,
    version_files,
    version_members,
    versions,
)
from ampref_service.catalog.tables import rollouts as rollouts_table

LATEST = "latest"
_LOCKABLE = (0, 1)
_HOW_TO_LIST = "`ampref dataset list` shows what there is"


def begin_version(
    session: Session,
    dataset: str,
    version: str,
    wanted: Select,
    *,
    waivers: Sequence[Mapping[str, str]] = (),
    max_attempts: int = job_rows.DEFAULT_MAX_ATTEMPTS,
    actor: str = audit.ANONYMOUS,
) -> tuple[Version, Job]:
    """Take a version's name and queue the job that locks it, in the caller's transaction.

    Of two at the same time one wins; the other gets `Conflict`. The version stays invisible until `publish_version`.

    Args:
      waivers: `{test, reason}` of the readiness tests whose failure is to be borne.
    """
    check_dataset_name(dataset)
    check_version(version)
    borne = list(check_waivers(waivers))
    _check_select(wanted)
    _check_recipe(session, wanted.recipe)
    _check_robot(session, dataset, wanted.robot)
    at = now(session)
    job_rows.insert_ignore(session, datasets, {"name": dataset, "created_at": at})
    version_id = new_id("version")
    values = {
        "id": version_id,
        "dataset": dataset,
        "version": version,
        "state": "locking",
        "robot": wanted.robot,
        "select": wanted.to_dict(),
        "created_at": at,
        "actor": actor,
    }
    if not job_rows.insert_ignore(session, versions, values):
        state = session.execute(
            select(versions.c.state).where(versions.c.dataset == dataset, versions.c.version == version)
        ).scalar_one_or_none()
        if state == "locked":
            raise Conflict(
                f"{dataset}=={version} is locked already", remedy="A locked version never changes: choose the next number"
            )
        raise Conflict(
            f"{dataset}=={version} is being locked at this moment", remedy="Wait for that job, or choose another version number"
        )
    job, _ = job_rows.enqueue(
        session,
        "lock",
        version_id=version_id,
        payload={"dataset": dataset, "version": version, "select": wanted.to_dict(), "waivers": borne},
        max_attempts=max_attempts,
        actor=actor,
    )
    detail = {"select": wanted.to_dict(), "job": job.id} | ({"waivers": borne} if borne else {})
    audit.record(session, actor, "version.begin", f"version:{dataset}=={version}", detail)
    return get_version_by_id(session, version_id), job


def _check_robot(session: Session, dataset: str, robot: str) -> None:
    """A dataset is of one robot: the same columns of another one would train without a word."""
    query = select(versions.c.robot, versions.c.version).where(
        versions.c.dataset == dataset, versions.c.state == "locked", versions.c.robot != robot
    )
    other = session.execute(query.limit(1)).one_or_none()
    if other is not None:
        raise Conflict(
            f"the dataset {dataset} is of the robot {other.robot} (see {dataset}=={other.version}), not of {robot}",
            key="select.robot",
            expected=other.robot,
            remedy="Lock it under another dataset name",
        )


def _check_recipe(session: Session, digest: str | None) -> None:
    """A recipe of mode auto finds nothing: what it made is kept under the recipes that it came to, up to two for a clip."""
    mode = session.execute(select(recipes.c.mode).where(recipes.c.digest == digest)).scalar_one_or_none()
    if mode == "auto":
        raise InputRefused(
            "the recipe is of mode auto, which no rollout is in",
            key="select.recipe",
            expected="the digest of a rollout's own recipe",
            remedy="Leave it out: then each clip is there once, by its best rollout",
        )


def _check_select(wanted: Select) -> None:
    if not wanted.tiers or any(tier not in _LOCKABLE for tier in wanted.tiers):
        raise InputRefused(
            f"the tiers are {list(wanted.tiers)}",
            key="select.tier",
            expected="0 (training data), 1 (for a curriculum), or both: what was Rejected is in no version",
        )
    if wanted.mode == "auto":
        raise InputRefused(
            "no rollout is in mode auto",
            key="select.mode",
            expected="rollout, tracked or teacher_forced: what mode auto came to",
            remedy="Leave it out: then each clip is there once, by its best rollout",
        )
    if wanted.mode is not None and wanted.recipe is not None:
        raise InputRefused(
            "both a mode and a recipe are asked for", key="select.recipe", expected="one of them: a recipe has its mode in it"
        )
    if wanted.buckets is not None and wanted.recipe is not None:
        raise InputRefused(
            "both buckets and a recipe are asked for",
            key="select.recipe",
            expected="one of them: a recipe has its physics in it",
        )
    if wanted.buckets == ():
        raise InputRefused("the list of buckets is empty", key="select.buckets", expected="all, or at least one bucket")


def publish_version(
    session: Session,
    version_id: str,
    *,
    members: Iterable[VersionMember],
    files: Iterable[VersionFile],
    dataset_hash: str,
    feature_code_hash: str,
    manifest_digest: str,
    num_clips: int,
    num_frames: int,
    readiness: Mapping[str, Any] | None = None,
    coverage: Mapping[str, Any] | None = None,
    actor: str = audit.ANONYMOUS,
) -> Version:
    """Give a version its members and files and make it visible, all in the caller's transaction. The blobs must be stored by
    now.

    Raises `NotFound` when the version was abandoned meanwhile, and `Conflict` when it is locked or a member's clip was deleted.
    """
    version = get_version_by_id(session, version_id)
    if version.state != "locking":
        raise Conflict(f"{version.dataset}=={version.version} is locked already")
    at = now(session)
    rows: list[dict[str, Any]] = [
        {
            "version_id": version_id,
            "position": position,
            "clip_id": member.clip_id,
            "rollout_id": member.rollout_id,
            "name": member.name,
            "start": member.start,
            "end": member.end,
            "tier": member.tier,
        }
        for position, member in enumerate(members)
    ]
    if not rows:
        raise InputRefused("the version has no members", expected="at least one clip", remedy="Widen the selection")
    # The clips are held until the end, so that none can be deleted between this look and the commit.
    for part in _chunks(sorted({row["clip_id"] for row in rows})):
        there = set(session.execute(select(clips.c.id).where(clips.c.id.in_(part)).with_for_update(read=True)).scalars())
        gone = [clip_id for clip_id in part if clip_id not in there]
        if gone:
            raise _clip_gone(version, gone[0])
    try:
        session.execute(insert(version_members), rows)
    except exc.IntegrityError as error:
        raise _clip_gone(version, "one of them") from error
    session.execute(
        insert(version_files),
        [
            {
                "version_id": version_id,
                "name": file.name,
                "digest": file.digest,
                "size": file.size,
                "media_type": file.media_type,
            }
            for file in files
        ],
    )
    session.execute(
        update(versions)
        .where(versions.c.id == version_id)
        .values(
            state="locked",
            locked_at=at,
            dataset_hash=dataset_hash,
            feature_code_hash=feature_code_hash,
            manifest_digest=manifest_digest,
            num_clips=num_clips,
            num_frames=num_frames,
            readiness=None if readiness is None else dict(readiness),
            coverage=None if coverage is None else dict(coverage),
        )
    )
    audit.record(
        session,
        actor,
        "version.lock",
        f"version:{version.dataset}=={version.version}",
        {"manifest": manifest_digest, "dataset_hash": dataset_hash, "clips": num_clips, "frames": num_frames},
    )
    return get_version_by_id(session, version_id)


def _clip_gone(version: Version, clip_id: str) -> Conflict:
    return Conflict(
        f"a clip of {version.dataset}=={version.version} was deleted while it was being locked ({clip_id})",
        remedy="Lock it again",
    )


def abandon_version(session: Session, version_id: str, *, reason: str, actor: str = audit.ANONYMOUS) -> bool:
    """Free the name of a version that could not be locked; False when it is locked, or gone already."""
    row = session.execute(
        select(versions.c.dataset, versions.c.version)
        .where(versions.c.id == version_id, versions.c.state == "locking")
        .with_for_update()
    ).one_or_none()
    if row is None:
        return False
    session.execute(delete(versions).where(versions.c.id == version_id))
    audit.record(session, actor, "version.abandon", f"version:{row.dataset}=={row.version}", {"reason": reason})
    return True


def select_members(session: Session, wanted: Select, *, chunk: int = 500) -> Iterator[SelectedRollout]:
    """The rollouts that a version takes, by clip name, then source digest; streamed, in constant memory.

    See `Select` for which they are. Read them to the end within the session.
    """
    _check_select(wanted)
    query = _selected(wanted, None if wanted.buckets is None else _recipes_of(session, wanted.buckets))
    with contextlib.closing(session.execute(query, execution_options={"yield_per": chunk})) as stream:
        yield from _ranged(session, stream.mappings().partitions(chunk), wanted)


def _ranged(session: Session, parts: Iterable[Sequence[RowMapping]], wanted: Select) -> Iterator[SelectedRollout]:
    known: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        known |= _recipes(session, {row["recipe_digest"] for row in part} - known.keys())
        failed = [row["rollout_id"] for row in part if row["tier"] not in wanted.tiers]
        windows = _windows(session, failed, wanted) if wanted.segments and failed else {}
        for row in part:
            if row["tier"] in wanted.tiers:
                ranges: tuple[tuple[int, int, int], ...] = ((0, row["frames"], row["tier"]),)
                measured: tuple[Mapping[str, Any], ...] = ({name: row[name] for name in WEIGHT_METRICS},)
            else:
                found = windows.get(row["rollout_id"], ())
                ranges = tuple(window for window, _ in found)
                measured = tuple(metrics for _, metrics in found)
            if ranges:
                yield _to_selected(row, ranges, measured, known[row["recipe_digest"]])


def _recipes(session: Session, digests: Iterable[str] | None = None) -> dict[str, Mapping[str, Any]]:
    """Recipes by digest; every one that rollouts can have, where none are named."""
    query = select(recipes.c.digest, recipes.c.recipe)
    if digests is None:
        rows = session.execute(query.where(recipes.c.mode != "auto")).all()
    else:
        rows = [row for part in _chunks(sorted(digests)) for row in session.execute(query.where(recipes.c.digest.in_(part)))]
    return {row.digest: row.recipe for row in rows}


def _scale(recipe: Mapping[str, Any]) -> PhysicsScale:
    return PhysicsScale(**(recipe.get("physics") or {}))


def _scales(session: Session, digests: Iterable[str] | None = None) -> dict[str, PhysicsScale]:
    return {digest: _scale(recipe) for digest, recipe in _recipes(session, digests).items()}


def _recipes_of(session: Session, wanted: Literal["all"] | tuple[PhysicsScale, ...]) -> dict[PhysicsScale, list[str]]:
    """Which recipes are in each of the wanted buckets. There are few recipes, so they are told apart here: databases differ in
    how they read a number in JSON."""
    found: dict[PhysicsScale, list[str]] = {} if wanted == "all" else {scale: [] for scale in wanted}
    for digest, scale in sorted(_scales(session).items()):
        if wanted == "all" or scale in found:
            found.setdefault(scale, []).append(digest)
    return found


def missing_buckets(session: Session, wanted: Select) -> tuple[list[PhysicsScale], list[PhysicsScale]]:
    """Of the buckets asked for, those that hold nothing of the selection; and those that do hold something, if any is missing
    all there are."""

    def holds(scale: PhysicsScale) -> bool:
        one = dataclasses.replace(wanted, buckets=(scale,))
        return next(iter(select_members(session, one, chunk=1)), None) is not None

    asked = wanted.buckets if isinstance(wanted.buckets, tuple) else ()
    missing = [scale for scale in asked if not holds(scale)]
    if not missing:
        return [], sorted(asked, key=lambda scale: scale.order)
    every = select_members(session, dataclasses.replace(wanted, buckets="all"))
    return missing, sorted({PhysicsScale(**(member.physics or {})) for member in every}, key=lambda scale: scale.order)


def _selected(wanted: Select, buckets: Mapping[PhysicsScale, Sequence[str]] | None) -> Query[Any]:
    spoken = rollouts_table
    query = select(
        clips.c.id.label("clip_id"),
        spoken.c.id.label("rollout_id"),
        clips.c.name,
        clips.c.source_digest,
        *(clips.c[name] for name in LINEAGE_COLUMNS),
        clips.c.robot_digest,
        *(
            spoken.c[name]
            for name in (
                "recipe_digest",
                "mode",
                "tier",
                "gate_profile",
                "frames",
                "arrays_digest",
                "feature_code_hash",
                "mujoco_version",
                *METRIC_COLUMNS,
            )
        ),
    ).order_by(clips.c.name, clips.c.source_digest, clips.c.id, spoken.c.recipe_digest)
    if wanted.recipe is not None:
        query = query.join(spoken, spoken.c.clip_id == clips.c.id).where(spoken.c.recipe_digest == wanted.recipe)
    elif buckets is not None:
        best = rollouts.best_in(buckets, wanted.mode)
        query = query.join(spoken, spoken.c.clip_id == clips.c.id).join(best, best.c.id == spoken.c.id).where(best.c.place == 1)
    else:
        scope = rollouts.ANY_MODE if wanted.mode is None else wanted.mode
        query = (
            query.join(curriculum, curriculum.c.clip_id == clips.c.id)
            .join(spoken, spoken.c.id == curriculum.c.rollout_id)
            .join(recipes, recipes.c.digest == spoken.c.recipe_digest)
            # Scaled physics stays out unless the caller names its recipe or buckets: nobody is to mix physics unawares.
            .where(curriculum.c.scope == scope, recipes.c.scaled == 0)
        )
    fits: ColumnElement[bool] = spoken.c.tier.in_(wanted.tiers)
    if wanted.segments:
        fits = or_(fits, exists().where(segments.c.rollout_id == spoken.c.id, segments.c.tier.in_(wanted.tiers)))
    return _about_clips(query.where(fits), wanted)


_Window = tuple[tuple[int, int, int], Mapping[str, Any]]


def _windows(session: Session, ids: list[str], wanted: Select) -> dict[str, list[_Window]]:
    """Of each rollout its windows of the wanted tiers, with what their sampling weights are made of."""
    known: dict[tuple[str, int, int], Mapping[str, Any]] = {}
    results = select(rollouts_table.c.id, rollouts_table.c.result["segments"]).where(rollouts_table.c.id.in_(ids))
    for rollout_id, measured in session.execute(results):
        for one in measured or ():
            metrics = one.get("quality_metrics", {})
            known[rollout_id, one["start"], one["end"]] = {name: metrics.get(name) for name in WEIGHT_METRICS}
    found: dict[str, list[_Window]] = {}
    query = (
        select(segments.c.rollout_id, segments.c.start, segments.c.end, segments.c.tier)
        .where(segments.c.rollout_id.in_(ids), segments.c.tier.in_(wanted.tiers))
        .order_by(segments.c.rollout_id, segments.c.start)
    )
    for rollout_id, start, end, tier in session.execute(query):
        found.setdefault(rollout_id, []).append(((start, end, tier), known.get((rollout_id, start, end), {})))
    return found


def _to_selected(
    row: RowMapping,
    ranges: tuple[tuple[int, int, int], ...],
    measured: tuple[Mapping[str, Any], ...],
    recipe: Mapping[str, Any],
) -> SelectedRollout:
    return SelectedRollout(
        **{name: value for name, value in row.items() if name not in METRIC_COLUMNS},
        ranges=ranges,
        range_metrics=measured,
        metrics={name: row[name] for name in METRIC_COLUMNS},
        physics=dataclasses.asdict(_scale(recipe)),
        generator_version=recipe.get("generator_version"),
    )


def pending_clips(session: Session, wanted: Select) -> int:
    """How many clips that fit the selection by robot, tags and names have a scoring job that has not ended."""
    query = select(func.count(distinct(clips.c.id))).join(jobs, jobs.c.clip_id == clips.c.id)
    query = _about_clips(query.where(jobs.c.kind == "rollout", jobs.c.state.in_(("queued", "running"))), wanted)
    if wanted.recipe is not None:
        query = query.where(jobs.c.recipe_digest == wanted.recipe)
    return int(session.execute(query).scalar_one())


def _about_clips(query: Query[Any], wanted: Select) -> Query[Any]:
    query = query.where(clips.c.robot == wanted.robot)
    for tag in sorted(set(wanted.tags)):
        query = query.where(exists().where(clip_tags.c.clip_id == clips.c.id, clip_tags.c.tag == tag))
    if wanted.clips:
        query = query.where(or_(clips.c.id.in_(wanted.clips), clips.c.name.in_(wanted.clips)))
    return query


def missing_clips(session: Session, wanted: Select) -> list[str]:
    """Those of `wanted.clips` that are neither the id nor the name of a clip for this robot."""
    asked = list(dict.fromkeys(wanted.clips))
    found: set[str] = set()
    for part in _chunks(asked):
        rows = session.execute(
            select(clips.c.id, clips.c.name).where(
                clips.c.robot == wanted.robot, or_(clips.c.id.in_(part), clips.c.name.in_(part))
            )
        )
        for row in rows:
            found |= {row.id, row.name}
    return [clip for clip in asked if clip not in found]


def list_datasets(session: Session) -> list[Dataset]:
    """Every dataset that has a locked version, by name."""
    rows = _versions(session, versions.c.state == "locked")
    by_name: dict[str, list[Version]] = {}
    for version in rows:
        by_name.setdefault(version.dataset, []).append(version)
    created = {row.name: row.created_at for row in session.execute(select(datasets.c.name, datasets.c.created_at))}
    names = _aliases(session)
    return [_dataset(name, created[name], found, names.get(name, {})) for name, found in sorted(by_name.items())]


def get_dataset(session: Session, name: str) -> Dataset:
    """A dataset with its locked versions, the highest first; raises `NotFound`."""
    created = session.execute(select(datasets.c.created_at).where(datasets.c.name == name)).scalar_one_or_none()
    found = _versions(session, versions.c.dataset == name, versions.c.state == "locked")
    if created is None or not found:
        raise NotFound(f"no dataset {name[:80]!r}", remedy=_HOW_TO_LIST)
    return _dataset(name, created, found, _aliases(session, name).get(name, {}))


def _dataset(name: str, created: float, found: list[Version], names: Mapping[str, str]) -> Dataset:
    ordered = sorted(found, key=lambda version: version_order(version.version), reverse=True)
    newest = _latest(ordered)
    return Dataset(name, created, None if newest is None else newest.version, dict(names), tuple(ordered))


def _latest(found: Iterable[Version]) -> Version | None:
    usable = [version for version in found if not version.yanked]
    released = [version for version in usable if "-" not in version.version]
    return max(released or usable, key=lambda version: version_order(version.version), default=None)


def version_order(version: str) -> tuple[Any, ...]:
    """A sort key: the precedence of semantic versioning (semver.org, rule 11)."""
    release, _, suffix = version.partition("-")
    numbers = tuple(int(part) for part in release.split("."))
    if not suffix:
        return (numbers, 1, ())
    parts = tuple((0, int(part), "") if re.fullmatch(r"[0-9]+", part) else (1, 0, part) for part in suffix.split("."))
    return (numbers, 0, parts)


def _aliases(session: Session, dataset: str | None = None) -> dict[str, dict[str, str]]:
    query = (
        select(aliases.c.dataset, aliases.c.alias, versions.c.version)
        .join(versions, versions.c.id == aliases.c.version_id)
        .order_by(aliases.c.dataset, aliases.c.alias)
    )
    if dataset is not None:
        query = query.where(aliases.c.dataset == dataset)
    found: dict[str, dict[str, str]] = {}
    for name, alias, version in session.execute(query):
        found.setdefault(name, {})[alias] = version
    return found


def get_version(session: Session, dataset: str, version: str) -> Version:
    """A locked version by its exact name, an alias, or `latest`; raises `NotFound` that says what there is.

    A yanked version is found by its exact name and by an alias, never by `latest`.
    """
    found = _versions(session, versions.c.dataset == dataset, versions.c.version == version, versions.c.state == "locked")
    if found:
        return found[0]
    if version == LATEST:
        known = get_dataset(session, dataset)
        newest = _latest(known.versions)
        if newest is not None:
            return newest
        raise NotFound(f"every version of {dataset!r} is yanked", remedy="Name one exactly, or lock a new one")
    alias = session.execute(
        select(aliases.c.version_id).where(aliases.c.dataset == dataset, aliases.c.alias == version)
    ).scalar_one_or_none()
    if alias is not None:
        return get_version_by_id(session, alias)
    known = get_dataset(session, dataset)
    choices = [found.version for found in known.versions] + sorted(known.aliases)
    raise NotFound(
        f"{dataset!r} has no version or alias {version[:80]!r}",
        expected="one of " + ", ".join(choices[:20]),
        remedy=f"`ampref dataset show {dataset}` lists them",
    )


def get_version_by_id(session: Session, version_id: str) -> Version:
    """A version in whatever state; raises `NotFound`."""
    found = _versions(session, versions.c.id == version_id)
    if not found:
        raise NotFound(f"no version {version_id[:80]!r}", remedy="It was abandoned because it could not be locked")
    return found[0]


def _versions(session: Session, *where: Any) -> list[Version]:
    # Coverage lists every source; a list of versions has no use for it.
    columns = [column for column in versions.c if column.name != "coverage"]
    rows = session.execute(select(*columns).where(*where).order_by(versions.c.dataset, versions.c.locked_at)).mappings().all()
    files: dict[str, list[VersionFile]] = {}
    for part in _chunks([row["id"] for row in rows]):
        query = (
            select(version_files)
            .where(version_files.c.version_id.in_(part), ~version_files.c.name.startswith(VERIFICATION, autoescape=True))
            .order_by(version_files.c.version_id, version_files.c.name)
        )
        for row in session.execute(query).mappings():
            files.setdefault(row["version_id"], []).append(
                VersionFile(row["name"], row["digest"], row["size"], row["media_type"])
            )
    return [Version(**row, files=tuple(files.get(row["id"], ()))) for row in rows]


def get_coverage(session: Session, version_id: str) -> dict[str, Any] | None:
    """The coverage figures of a version; None for one that was locked before there were any."""
    found: dict[str, Any] | None = session.execute(
        select(versions.c.coverage).where(versions.c.id == version_id)
    ).scalar_one_or_none()
    return found


def get_buckets(session: Session, version_id: str) -> list[VersionBucket]:
    """What a version holds of each physics, the robot's own first."""
    query = (
        select(
            rollouts_table.c.recipe_digest,
            func.count(distinct(version_members.c.rollout_id)).label("clips"),
            func.sum(version_members.c.end - version_members.c.start).label("frames"),
        )
        .join(rollouts_table, rollouts_table.c.id == version_members.c.rollout_id)
        .where(version_members.c.version_id == version_id)
        .group_by(rollouts_table.c.recipe_digest)
    )
    rows = session.execute(query).all()
    scales = _scales(session, {row.recipe_digest for row in rows})
    counts: dict[PhysicsScale, tuple[int, int]] = {}
    for row in rows:
        number, frames = counts.get(scales[row.recipe_digest], (0, 0))
        counts[scales[row.recipe_digest]] = (number + int(row.clips), frames + int(row.frames))
    return [
        VersionBucket(scale.name, dataclasses.asdict(scale), *counts[scale])
        for scale in sorted(counts, key=lambda scale: scale.order)
    ]


def get_bucket_names(session: Session, version_id: str) -> dict[str, str]:
    """The bucket of each rollout in a version, by the rollout's id."""
    query = (
        select(rollouts_table.c.id, rollouts_table.c.recipe_digest)
        .join(version_members, version_members.c.rollout_id == rollouts_table.c.id)
        .where(version_members.c.version_id == version_id)
        .distinct()
    )
    rows = session.execute(query).all()
    scales = _scales(session, {row.recipe_digest for row in rows})
    return {row.id: scales[row.recipe_digest].name for row in rows}


def get_file(session: Session, dataset: str, version: str, name: str) -> VersionFile:
    """An artifact of a locked version; raises `NotFound`."""
    found = get_version(session, dataset, version)
    for file in found.files:
        if file.name == name:
            return file
    raise NotFound(
        f"{found.dataset}=={found.version} has no file {name[:80]!r}",
        expected="one of " + ", ".join(file.name for file in found.files),
    )


def list_members(session: Session, version_id: str, *, after: int = -1, limit: int = 500) -> list[VersionMember]:
    """A version's members in their order, from the one after position `after`."""
    query = (
        select(version_members)
        .where(version_members.c.version_id == version_id, version_members.c.position > after)
        .order_by(version_members.c.position)
        .limit(limit)
    )
    return [
        VersionMember(row["clip_id"], row["rollout_id"], row["name"], row["start"], row["end"], row["tier"], row["position"])
        for row in session.execute(query).mappings()
    ]


def set_alias(session: Session, dataset: str, alias: str, version: str, *, actor: str = audit.ANONYMOUS) -> Version:
    """Let an alias lead to a locked version (by exact name, or by what another alias leads to). Raises `NotFound`,
    `Conflict`."""
    check_alias(alias)
    if alias == LATEST:
        raise Conflict(
            "`latest` is computed and cannot be set",
            remedy="Choose another alias, or yank the version that should not be latest",
        )
    found = get_version(session, dataset, version)
    if found.yanked:
        raise Conflict(f"{dataset}=={found.version} is yanked: {found.yank_reason}", remedy="Choose another version")
    # Taken in order by everybody, the dataset's row makes moves of its aliases follow one another.
    session.execute(select(datasets.c.name).where(datasets.c.name == dataset).with_for_update())
    before = _aliases(session, dataset).get(dataset, {}).get(alias)
    values = {"version_id": found.id, "updated_at": now(session)}
    if before is None:
        session.execute(insert(aliases).values(dataset=dataset, alias=alias, **values))
    else:
        session.execute(update(aliases).where(aliases.c.dataset == dataset, aliases.c.alias == alias).values(values))
    audit.record(session, actor, "alias.set", f"alias:{dataset}@{alias}", {"from": before, "to": found.version})
    return found


def drop_alias(session: Session, dataset: str, alias: str, *, actor: str = audit.ANONYMOUS) -> None:
    """Remove an alias; raises `NotFound`."""
    before = _aliases(session, dataset).get(dataset, {}).get(alias)
    if before is None:
        raise NotFound(f"{dataset!r} has no alias {alias[:80]!r}", remedy=f"`ampref dataset show {dataset}` lists them")
    session.execute(delete(aliases).where(aliases.c.dataset == dataset, aliases.c.alias == alias))
    audit.record(session, actor, "alias.drop", f"alias:{dataset}@{alias}", {"from": before})


def yank_version(session: Session, dataset: str, version: str, reason: str, *, actor: str = audit.ANONYMOUS) -> Version:
    """Ask that nobody starts to use a version: `latest` passes it by; its exact name still works, with a warning."""
    if not reason.strip():
        raise InputRefused("a version is yanked without a reason", key="reason", expected="a sentence for those who use it")
    return _set_yank(session, dataset, version, reason.strip()[:1000], actor)


def unyank_version(session: Session, dataset: str, version: str, *, actor: str = audit.ANONYMOUS) -> Version:
    """Take a yank back."""
    return _set_yank(session, dataset, version, None, actor)


def _set_yank(session: Session, dataset: str, version: str, reason: str | None, actor: str) -> Version:
    found = get_version(session, dataset, version)
    if found.version != version:
        raise NotFound(
            f"{dataset!r} has no version {version[:80]!r}",
            expected="an exact version, not an alias",
            remedy=f"`ampref dataset show {dataset}` lists its versions",
        )
    if reason is None and not found.yanked:
        return found
    at = found.yanked_at if found.yanked and reason is not None else now(session)
    session.execute(
        update(versions).where(versions.c.id == found.id).values(yanked_at=None if reason is None else at, yank_reason=reason)
    )
    action = "version.unyank" if reason is None else "version.yank"
    audit.record(session, actor, action, f"version:{dataset}=={version}", {"reason": reason})
    return get_version_by_id(session, found.id)


def recipe_known(session: Session, digest: str) -> bool:
    """Whether any clip was ever to be scored with this recipe."""
    return session.execute(select(recipes.c.digest).where(recipes.c.digest == digest)).first() is not None


def _chunks(items: list[str], size: int = 500) -> Iterator[list[str]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
