"""Locking a version of a dataset.

A version is begun (`locking`: the name is taken, nothing is visible), and then published in one transaction with its members
and files, or abandoned, which frees its name. Once it is published the database itself refuses to change it, but for yanking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, insert, select, update

from amp_core.dataset.names import check_dataset_name, check_version
from amp_core.errors import Conflict, InputRefused
from amp_core.readiness import check_waivers
from ampref_service.catalog import audit, events, job_rows
from ampref_service.catalog.datasets import get_version_by_id
from ampref_service.catalog.engine import Session, chunked, insert_new, new_id, now
from ampref_service.catalog.records import USUAL_TERMS, Job, JobTerms, Select, Version, VersionFile, VersionMember
from ampref_service.catalog.selection import check_select
from ampref_service.catalog.tables import clips, datasets, recipes, rollouts, version_files, version_members, versions


def begin_version(
    session: Session,
    dataset: str,
    version: str,
    criteria: Select,
    *,
    waivers: Sequence[Mapping[str, str]] = (),
    robot_digest: str = "",
    limit_sec: float | None = None,
    terms: JobTerms = USUAL_TERMS,
    actor: str = audit.ANONYMOUS,
) -> tuple[Version, Job]:
    """Take a version's name and queue the job that locks it, in the caller's transaction.

    Of two at the same time one wins; the other gets `Conflict`. The version stays invisible until `publish_version`.

    Args:
      waivers: `{test, reason}` of the readiness tests whose failure is waived.
      robot_digest: of the members' robot, which the worker must have; empty: any worker will do.
      limit_sec: s that one attempt may take; None: the worker's own limits.
    """
    check_dataset_name(dataset)
    check_version(version)
    valid_waivers = list(check_waivers(waivers))
    check_select(criteria)
    _check_recipe(session, criteria.recipe)
    _check_robot(session, dataset, criteria.robot)
    at = now(session)
    insert_new(session, datasets, {"name": dataset, "created_at": at})
    version_id = new_id("version")
    values = {
        "id": version_id,
        "dataset": dataset,
        "version": version,
        "state": "locking",
        "robot": criteria.robot,
        "select": criteria.to_dict(),
        "created_at": at,
        "actor": actor,
    }
    if not insert_new(session, versions, values):
        query = select(versions.c.state).where(versions.c.dataset == dataset, versions.c.version == version)
        if session.execute(query).scalar_one_or_none() == "locked":
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
        payload={"dataset": dataset, "version": version, "select": criteria.to_dict(), "waivers": valid_waivers},
        robot=criteria.robot,
        robot_digest=robot_digest,
        limit_sec=limit_sec,
        terms=terms,
        actor=actor,
    )
    detail = {"select": criteria.to_dict(), "job": job.id} | ({"waivers": valid_waivers} if valid_waivers else {})
    audit.record(session, actor, "version.begin", f"version:{dataset}=={version}", detail)
    return get_version_by_id(session, version_id), job


def list_robots(session: Session, dataset: str) -> list[str]:
    """The robots that a dataset's locked versions are of: one, or none where there is no version."""
    query = select(versions.c.robot).where(versions.c.dataset == dataset, versions.c.state == "locked").distinct()
    return sorted(session.execute(query).scalars())


def _check_robot(session: Session, dataset: str, robot: str) -> None:
    """A dataset is of one robot: the same columns of another robot would train without a word."""
    query = select(versions.c.robot, versions.c.version).where(
        versions.c.dataset == dataset, versions.c.state == "locked", versions.c.robot != robot
    )
    first = session.execute(query.limit(1)).one_or_none()
    if first is not None:
        raise Conflict(
            f"the dataset {dataset} is of the robot {first.robot} (see {dataset}=={first.version}), not of {robot}",
            key="select.robot",
            expected=first.robot,
            remedy="Lock it under another dataset name",
        )


def _check_recipe(session: Session, digest: str | None) -> None:
    """A recipe of mode auto selects nothing: its rollouts are kept under the recipes that made them, up to two for a clip."""
    mode = session.execute(select(recipes.c.mode).where(recipes.c.digest == digest)).scalar_one_or_none()
    if mode == "auto":
        raise InputRefused(
            "the recipe is of mode auto, which no rollout is in",
            key="select.recipe",
            expected="the digest of a rollout's own recipe",
            remedy="Leave it out (--recipe): then each clip is there once, by its best rollout",
        )


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
    """Give a version its members and files and make it visible, all in the caller's transaction.

    The blobs must be stored by then. Raises `NotFound` when the version was abandoned meanwhile, and `Conflict` when it is
    locked or a member's clip was deleted.
    """
    version = get_version_by_id(session, version_id)
    if version.state != "locking":
        raise Conflict(f"{version.dataset}=={version.version} is locked already")
    at = now(session)
    ranges = list(members)
    if not ranges:
        raise InputRefused("the version has no members", expected="at least one clip", remedy="Widen the selection")
    # The clips, then their rollouts, are locked until the end, so that none can be deleted between this look and the commit.
    for table, name in ((clips, "clip_id"), (rollouts, "rollout_id")):
        for ids in chunked(sorted({str(getattr(member, name)) for member in ranges})):
            query = select(table.c.id).where(table.c.id.in_(ids)).with_for_update(read=True)
            missing = set(ids) - set(session.execute(query).scalars())
            if missing:
                raise _clip_deleted(version, min(missing))
    position = 0
    for part in chunked(ranges):
        rows = [asdict(member) | {"version_id": version_id, "position": position + i} for i, member in enumerate(part)]
        session.execute(insert(version_members), rows)
        position += len(part)
    session.execute(insert(version_files), [asdict(file) | {"version_id": version_id} for file in files])
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
    events.record(
        session,
        "version.locked",
        {
            "version": version.version,
            "manifest_sha256": manifest_digest,
            "num_clips": num_clips,
            "num_frames": num_frames,
            "ready": None if readiness is None else readiness.get("ready"),
        },
        dataset=version.dataset,
        robot=version.robot,
    )
    return get_version_by_id(session, version_id)


def _clip_deleted(version: Version, clip_id: str) -> Conflict:
    return Conflict(
        f"a clip of {version.dataset}=={version.version} was deleted while it was being locked ({clip_id})",
        remedy="Lock it again",
    )


def abandon_version(session: Session, version_id: str, *, reason: str) -> bool:
    """Free the name of a version that could not be locked; False when it is locked, or was abandoned before."""
    row = session.execute(
        select(versions.c.dataset, versions.c.version)
        .where(versions.c.id == version_id, versions.c.state == "locking")
        .with_for_update()
    ).one_or_none()
    if row is None:
        return False
    session.execute(delete(versions).where(versions.c.id == version_id))
    audit.record(session, audit.ANONYMOUS, "version.abandon", f"version:{row.dataset}=={row.version}", {"reason": reason})
    return True
