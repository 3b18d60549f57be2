"""Datasets, their locked versions and files, and the names that lead to them.

`latest` is the highest locked version that is neither yanked nor archived, by semantic versioning, as package indexes do it: a
correction of an old version that is locked later does not become `latest`, and a pre-release does only when there is nothing
else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, update

from amp_core.dataset.names import check_alias
from amp_core.errors import Conflict, FileGone, InputRefused, NotFound
from ampref_service.catalog import audit, events
from ampref_service.catalog.engine import Session, chunked, now
from ampref_service.catalog.records import NO_BOUNDS, Bounds, Dataset, EventKind, Version, VersionFile
from ampref_service.catalog.tables import aliases, datasets, version_files, versions

LATEST = "latest"
VERIFICATION = "verification_v"
"""How the name of a version's verification report begins. It is stored with the version's three files and is none of them."""

_FILE = [version_files.c[name] for name in ("name", "digest", "size", "media_type")]
_IS_VERIFICATION = version_files.c.name.startswith(VERIFICATION, autoescape=True)


def list_datasets(session: Session, bounds: Bounds = NO_BOUNDS) -> list[Dataset]:
    """Every dataset within bounds that has a locked version, by name."""
    by_name: dict[str, list[Version]] = {}
    for version in _versions(session, versions.c.state == "locked"):
        if bounds.includes_dataset(version.dataset) and bounds.includes_robot(version.robot):
            by_name.setdefault(version.dataset, []).append(version)
    creation_times = dict(session.execute(select(datasets.c.name, datasets.c.created_at)).all())
    names = _aliases(session)
    return [_dataset(name, creation_times[name], members, names.get(name, {})) for name, members in sorted(by_name.items())]


def get_dataset(session: Session, name: str) -> Dataset:
    """A dataset with its locked versions, the highest first; raises `NotFound`."""
    created_at = session.execute(select(datasets.c.created_at).where(datasets.c.name == name)).scalar_one_or_none()
    members = _versions(session, versions.c.dataset == name, versions.c.state == "locked")
    if created_at is None or not members:
        raise NotFound(f"no dataset {name[:80]!r}", remedy="`ampref dataset list` shows what there is")
    return _dataset(name, created_at, members, _aliases(session, name).get(name, {}))


def _dataset(name: str, created_at: float, members: list[Version], names: Mapping[str, str]) -> Dataset:
    members = sorted(members, key=lambda version: version_order(version.version), reverse=True)
    latest = _latest(members)
    return Dataset(name, created_at, None if latest is None else latest.version, dict(names), tuple(members))


def _latest(members: Iterable[Version]) -> Version | None:
    usable = [version for version in members if not version.yanked and not version.archived]
    releases = [version for version in usable if "-" not in version.version]
    return max(releases or usable, key=lambda version: version_order(version.version), default=None)


def version_order(version: str) -> tuple[Any, ...]:
    """A sort key: the precedence of semantic versioning (semver.org, rule 11)."""
    release, _, suffix = version.partition("-")
    numbers = tuple(int(part) for part in release.split("."))
    if not suffix:
        return (numbers, 1, ())
    parts = tuple((0, int(part), "") if re.fullmatch(r"[0-9]+", part) else (1, 0, part) for part in suffix.split("."))
    return (numbers, 0, parts)


def get_version(session: Session, dataset: str, version: str) -> Version:
    """A locked version by its exact name, an alias, or `latest`; raises `NotFound` that says what there is.

    A yanked version is found by its exact name and by an alias, never by `latest`.
    """
    exact = _versions(session, versions.c.dataset == dataset, versions.c.version == version, versions.c.state == "locked")
    if exact:
        return exact[0]
    query = select(aliases.c.version_id).where(aliases.c.dataset == dataset, aliases.c.alias == version)
    if version != LATEST and (version_id := session.execute(query).scalar_one_or_none()) is not None:
        return get_version_by_id(session, version_id)
    siblings = get_dataset(session, dataset)
    if version == LATEST:
        latest = _latest(siblings.versions)
        if latest is None:
            raise NotFound(f"every version of {dataset!r} is yanked or archived", remedy="Name one exactly, or lock a new one")
        return latest
    choices = [sibling.version for sibling in siblings.versions] + sorted(siblings.aliases)
    raise NotFound(
        f"{dataset!r} has no version or alias {version[:80]!r}",
        expected="one of " + ", ".join(choices[:20]),
        remedy=f"`ampref dataset show {dataset}` lists them",
    )


def get_version_by_id(session: Session, version_id: str) -> Version:
    """A version in whatever state; raises `NotFound`."""
    rows = _versions(session, versions.c.id == version_id)
    if not rows:
        raise NotFound(f"no version {version_id[:80]!r}", remedy="It was abandoned because it could not be locked")
    return rows[0]


def _versions(session: Session, *conditions: ColumnElement[bool]) -> list[Version]:
    # Coverage lists every source; a list of versions has no use for it.
    columns = [column for column in versions.c if column.name != "coverage"]
    query = select(*columns).where(*conditions).order_by(versions.c.dataset, versions.c.locked_at)
    rows = session.execute(query).mappings().all()
    files: dict[str, list[VersionFile]] = {row["id"]: [] for row in rows}
    for part in chunked(list(files)):
        file_query = select(version_files.c.version_id, *_FILE).where(version_files.c.version_id.in_(part), ~_IS_VERIFICATION)
        for version_id, *file in session.execute(file_query.order_by(version_files.c.version_id, version_files.c.name)):
            files[version_id].append(VersionFile(*file))
    return [Version(**row, files=tuple(files[row["id"]])) for row in rows]


def get_coverage(session: Session, version_id: str) -> dict[str, Any] | None:
    """The coverage of a version; None for one that was locked before there was any."""
    coverage: dict[str, Any] | None = session.execute(
        select(versions.c.coverage).where(versions.c.id == version_id)
    ).scalar_one_or_none()
    return coverage


def get_file(session: Session, dataset: str, version: str, name: str) -> VersionFile:
    """An artifact of a locked version; raises `NotFound`, and `FileGone` where the version is archived without it."""
    owner = get_version(session, dataset, version)
    for file in owner.files:
        if file.name == name:
            if owner.archived and not file.is_kept:
                raise _features_gone(owner, file)
            return file
    raise NotFound(
        f"{owner.dataset}=={owner.version} has no file {name[:80]!r}",
        expected="one of " + ", ".join(file.name for file in owner.files),
    )


def _features_gone(owner: Version, file: VersionFile) -> FileGone:
    at = datetime.fromtimestamp(owner.archived_at or 0.0, UTC)
    return FileGone(
        f"{owner.dataset}=={owner.version} was archived on {at:%Y-%m-%d} by {owner.archived_by}: {owner.archive_reason}; "
        f"{file.name} ({file.digest}) is not kept",
        remedy="A node that has it in its cache goes on. To have it back, lock the same selection under another number, which "
        "gives the same bytes, or restore it from a backup; then "
        f"ampref dataset archive {owner.dataset} {owner.version} --undo",
    )


def verification_name(version: str) -> str:
    """The name of a version's verification report."""
    return f"{VERIFICATION}{version}.json"


def get_verification(session: Session, version_id: str) -> VersionFile | None:
    """The verification report of a version; None for one that was locked before there were any."""
    query = select(*_FILE).where(version_files.c.version_id == version_id, _IS_VERIFICATION)
    row = session.execute(query.limit(1)).one_or_none()
    return None if row is None else VersionFile(*row)


def _aliases(session: Session, dataset: str | None = None) -> dict[str, dict[str, str]]:
    """By dataset, which version each alias leads to."""
    query = (
        select(aliases.c.dataset, aliases.c.alias, versions.c.version)
        .join(versions, versions.c.id == aliases.c.version_id)
        .order_by(aliases.c.dataset, aliases.c.alias)
    )
    if dataset is not None:
        query = query.where(aliases.c.dataset == dataset)
    by_dataset: dict[str, dict[str, str]] = {}
    for name, alias, version in session.execute(query):
        by_dataset.setdefault(name, {})[alias] = version
    return by_dataset


def set_alias(session: Session, dataset: str, alias: str, version: str, *, actor: str = audit.ANONYMOUS) -> Version:
    """Let an alias lead to a locked version (by exact name, or by what another alias leads to).

    Raises `NotFound`, `Conflict`.
    """
    check_alias(alias)
    if alias == LATEST:
        raise Conflict(
            "`latest` is computed and cannot be set",
            remedy="Choose another alias, or yank the version that should not be latest",
        )
    target = get_version(session, dataset, version)
    # Locked by everybody in this order, the dataset's row makes changes of its aliases follow one another.
    session.execute(select(datasets.c.name).where(datasets.c.name == dataset).with_for_update())
    target = get_version_by_id(session, target.id)
    if target.yanked:
        raise Conflict(f"{dataset}=={target.version} is yanked: {target.yank_reason}", remedy="Choose another version")
    if target.archived:
        raise Conflict(f"{dataset}=={target.version} is archived: {target.archive_reason}", remedy="Choose another version")
    previous = _aliases(session, dataset).get(dataset, {}).get(alias)
    values = {"version_id": target.id, "updated_at": now(session)}
    if previous is None:
        session.execute(insert(aliases).values(dataset=dataset, alias=alias, **values))
    else:
        session.execute(update(aliases).where(aliases.c.dataset == dataset, aliases.c.alias == alias).values(values))
    audit.record(session, actor, "alias.set", f"alias:{dataset}@{alias}", {"from": previous, "to": target.version})
    return target


def drop_alias(session: Session, dataset: str, alias: str, *, actor: str = audit.ANONYMOUS) -> None:
    """Remove an alias; raises `NotFound`."""
    previous = _aliases(session, dataset).get(dataset, {}).get(alias)
    if previous is None:
        raise NotFound(f"{dataset!r} has no alias {alias[:80]!r}", remedy=f"`ampref dataset show {dataset}` lists them")
    session.execute(delete(aliases).where(aliases.c.dataset == dataset, aliases.c.alias == alias))
    audit.record(session, actor, "alias.drop", f"alias:{dataset}@{alias}", {"from": previous})


def yank_version(session: Session, dataset: str, version: str, reason: str, *, actor: str = audit.ANONYMOUS) -> Version:
    """Ask that nobody starts to use a version: `latest` passes it by; its exact name still works, with a warning."""
    if not reason.strip():
        raise InputRefused("a version is yanked without a reason", key="reason", expected="a sentence for those who use it")
    return _set_yank(session, dataset, version, reason.strip()[:1000], actor)


def unyank_version(session: Session, dataset: str, version: str, *, actor: str = audit.ANONYMOUS) -> Version:
    """Take a yank back."""
    return _set_yank(session, dataset, version, None, actor)


def _set_yank(session: Session, dataset: str, version: str, reason: str | None, actor: str) -> Version:
    target = _get_exact(session, dataset, version)
    if reason is None and not target.yanked:
        return target
    at = None if reason is None else target.yanked_at or now(session)
    session.execute(update(versions).where(versions.c.id == target.id).values(yanked_at=at, yank_reason=reason))
    action = "version.unyank" if reason is None else "version.yank"
    audit.record(session, actor, action, f"version:{dataset}=={version}", {"reason": reason})
    data = {"version": version, "reason": reason}
    kind: EventKind = "version.unyanked" if reason is None else "version.yanked"
    events.record(session, kind, data, dataset=dataset, robot=target.robot)
    return get_version_by_id(session, target.id)


def _get_exact(session: Session, dataset: str, version: str) -> Version:
    target = get_version(session, dataset, version)
    if target.version != version:
        raise NotFound(
            f"{dataset!r} has no version {version[:80]!r}",
            expected="an exact version, not an alias",
            remedy=f"`ampref dataset show {dataset}` lists its versions",
        )
    return target


def archive_version(
    session: Session,
    dataset: str,
    version: str,
    reason: str,
    *,
    expected_manifest: str,
    dry_run: bool = False,
    actor: str = audit.ANONYMOUS,
) -> Version:
    """Give up a version's features, and the hold on its clips; everything else of it stays. Done twice, it is done once.

    Args:
      dry_run: only refuse what would be refused.

    Raises:
      NotFound: there is no such version.
      Conflict: its manifest is not `expected_manifest`, or an alias leads to it.
      InputRefused: there is no reason.
    """
    if not reason.strip():
        raise InputRefused(
            "a version is archived without a reason", key="reason", expected="a sentence for those who look for it"
        )
    target = _get_exact(session, dataset, version)
    if target.manifest_digest != expected_manifest:
        raise Conflict(
            f"the manifest of {dataset}=={version} is {target.manifest_digest}",
            key="expected_manifest_sha256",
            expected=expected_manifest,
            remedy="Look at the version again: this may be another one than you meant",
        )
    # As in `set_alias`: no alias is set meanwhile.
    session.execute(select(datasets.c.name).where(datasets.c.name == dataset).with_for_update())
    target = get_version_by_id(session, target.id)
    names = sorted(
        alias for alias, target_version in _aliases(session, dataset).get(dataset, {}).items() if target_version == version
    )
    if names:
        raise Conflict(
            f"the alias {', '.join(names)} leads to {dataset}=={version}",
            remedy=f"Point it at another version first: ampref dataset alias {dataset} {names[0]} VERSION",
        )
    if target.archived or dry_run:
        return target
    reason = reason.strip()[:1000]
    _set_archive(session, target.id, now(session), actor, reason)
    files = {file.name: file.digest for file in target.files if not file.is_kept}
    audit.record(session, actor, "version.archive", f"version:{dataset}=={version}", {"reason": reason, "files": files})
    events.record(session, "version.archived", {"version": version, "reason": reason}, dataset=dataset, robot=target.robot)
    return get_version_by_id(session, target.id)


def unarchive_version(session: Session, dataset: str, version: str, *, actor: str = audit.ANONYMOUS) -> Version:
    """Take an archive back; the features must be in the store by then. What was purged of the clips stays away."""
    target = _get_exact(session, dataset, version)
    if target.archived:
        _set_archive(session, target.id, None, None, None)
        audit.record(session, actor, "version.unarchive", f"version:{dataset}=={version}")
        data = {"version": version, "reason": None}
        events.record(session, "version.unarchived", data, dataset=dataset, robot=target.robot)
    return get_version_by_id(session, target.id)


def _set_archive(session: Session, version_id: str, at: float | None, actor: str | None, reason: str | None) -> None:
    values = {"archived_at": at, "archived_by": actor, "archive_reason": reason}
    session.execute(update(versions).where(versions.c.id == version_id).values(values))
