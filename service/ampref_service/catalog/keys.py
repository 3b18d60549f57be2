"""Keys as rows, what each has used of its quotas, and which dataset and robot an address is about.

A key's text is stored nowhere, and a row is never deleted: `revoked_at` ends it, and that there was one closes the service for
good.
"""

from __future__ import annotations

import secrets as random
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, and_, case, func, select, update

from amp_core.errors import Conflict, NotFound, QuotaExceeded
from ampref_service.catalog import audit
from ampref_service.catalog.engine import Session, insert_new, new_id, now
from ampref_service.catalog.records import Bounds, Key, KeyUsage, NewKey
from ampref_service.catalog.tables import LIVE_STATES, api_keys, clips, jobs, rollouts, secrets, versions

PLACES = frozenset({"name", "clip_id", "rollout_id", "job_id"})
"""Variable parts of addresses whose dataset or robot the catalog knows; `name` is a dataset's."""
_SIGNING_SECRET = "signing"
_DAY_SEC = 86_400.0
_UNKNOWN_WORK_SEC = 60.0
"""What a job that waits counts for while none of its key has ended within a day."""


def _to_key(row: RowMapping, at: float) -> Key:
    values = dict(row)
    datasets, robots = (None if values[name] is None else tuple(values[name]) for name in ("datasets", "robots"))
    for name in ("datasets", "robots"):
        del values[name]
    return Key(
        **values | {"scopes": tuple(values["scopes"])},
        bounds=Bounds(datasets, robots),
        expires_in_sec=None if values["expires_at"] is None else values["expires_at"] - at,
    )


def add_key(session: Session, new: NewKey, *, actor: str) -> Key:
    """Store a key; raises `Conflict` where a key that is not revoked has its name."""
    at = now(session)
    values: dict[str, Any] = {
        "id": new_id("key"),
        "name": new.name,
        "digest": new.digest,
        "hint": new.hint,
        "scopes": list(new.scopes),
        "datasets": None if new.bounds.datasets is None else list(new.bounds.datasets),
        "robots": None if new.bounds.robots is None else list(new.bounds.robots),
        "created_at": at,
        "created_by": actor,
        "expires_at": None if new.expires_in_sec is None else at + new.expires_in_sec,
        "last_used_at": None,
        "revoked_at": None,
        "max_bytes": new.max_bytes,
        "max_queued": new.max_queued,
        "max_planning_sec": new.max_planning_sec,
    }
    if not insert_new(session, api_keys, values):
        raise Conflict(
            f"there is a key {new.name!r} that is not revoked",
            key="name",
            expected="a name that no such key has",
            remedy=f"Choose another name, or revoke that key first: ampref token revoke {new.name}",
        )
    facts = ("name", "hint", "scopes", "datasets", "robots", "expires_at", "max_bytes", "max_queued", "max_planning_sec")
    audit.record(session, actor, "key.create", f"key:{values['id']}", {name: values[name] for name in facts})
    return get_key(session, values["id"])


def get_key(session: Session, name: str) -> Key:
    """A key by its id or, of those that are not revoked, by its name; raises `NotFound`."""
    has_name = and_(api_keys.c.name == name, api_keys.c.revoked_at.is_(None))
    key = find_by_id(session, name) or _find(session, has_name)
    if key is None:
        raise NotFound(f"no key {name[:80]!r}", expected="the id of a key, or the name of one that is not revoked")
    return key


def find_by_digest(session: Session, digest: str) -> Key | None:
    """The key with this digest, valid or not."""
    return _find(session, api_keys.c.digest == digest)


def find_by_id(session: Session, key_id: str) -> Key | None:
    """The key with this id, valid or not."""
    return _find(session, api_keys.c.id == key_id)


def _find(session: Session, condition: ColumnElement[bool]) -> Key | None:
    row = session.execute(select(api_keys).where(condition)).mappings().one_or_none()
    return None if row is None else _to_key(row, now(session))


def list_keys(session: Session) -> list[Key]:
    """Every key, the oldest first."""
    at = now(session)
    rows = session.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)).mappings()
    return [_to_key(row, at) for row in rows]


def has_keys(session: Session) -> bool:
    """Whether a key was ever made, valid or not."""
    return session.execute(select(api_keys.c.id).limit(1)).first() is not None


def revoke_key(session: Session, key_id: str, *, actor: str) -> Key:
    """End a key for good; one that is revoked already stays as it is. Raises `NotFound`."""
    key = get_key(session, key_id)
    if key.revoked_at is None:
        session.execute(update(api_keys).where(api_keys.c.id == key.id).values(revoked_at=now(session)))
        audit.record(session, actor, "key.revoke", f"key:{key.id}", {"name": key.name})
    return get_key(session, key.id)


def record_use(session: Session, key_id: str) -> None:
    """Note that a key was used now."""
    session.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=now(session)))


def get_usage(session: Session, key: Key) -> KeyUsage:
    """What a key has used of its quotas. A name may have been another key's before: only what came since counts."""
    size = select(func.coalesce(func.sum(clips.c.size), 0)).where(
        clips.c.actor == key.actor, clips.c.created_at >= key.created_at
    )
    live = select(func.count()).where(jobs.c.owner == key.id, jobs.c.state.in_(LIVE_STATES))
    recent = jobs.c.started_at >= now(session) - _DAY_SEC
    ended = func.sum(case((jobs.c.state.in_(LIVE_STATES), 0), else_=1))
    work = select(func.coalesce(func.sum(jobs.c.worked_sec), 0.0), func.coalesce(ended, 0)).where(
        jobs.c.owner == key.id, recent
    )
    worked_sec, count = session.execute(work).one()
    queued = int(session.execute(live).scalar_one())
    expected_sec = queued * (worked_sec / count if count else _UNKNOWN_WORK_SEC)
    return KeyUsage(int(session.execute(size).scalar_one()), queued, float(worked_sec + expected_sec))


def check_bytes(session: Session, key: Key) -> None:
    """Raise `QuotaExceeded` where the clips that a key has stored, this transaction's included, are over its quota."""
    if key.max_bytes is None:
        return
    _lock_key(session, key)
    usage = get_usage(session, key)
    if usage.bytes > key.max_bytes:
        raise _refuse(
            key, f"its clips would have {usage.bytes:,} bytes", f"at most {key.max_bytes:,}", "Delete clips", _DAY_SEC
        )


def check_work(session: Session, key: Key) -> None:
    """Raise `QuotaExceeded` where the jobs of a key, this transaction's included, are over its quotas."""
    if key.max_queued is None and key.max_planning_sec is None:
        return
    _lock_key(session, key)
    usage = get_usage(session, key)
    if key.max_queued is not None and usage.queued > key.max_queued:
        expected = f"at most {key.max_queued:,}"
        raise _refuse(key, f"{usage.queued:,} of its jobs would wait or run", expected, "Wait until some have ended", 30.0)
    if key.max_planning_sec is not None and usage.planning_sec > key.max_planning_sec:
        first = session.execute(
            select(func.min(jobs.c.started_at)).where(jobs.c.owner == key.id, jobs.c.started_at >= now(session) - _DAY_SEC)
        ).scalar_one()
        wait = 60.0 if first is None else max(60.0, first + _DAY_SEC - now(session))
        raise _refuse(
            key,
            f"its jobs of 24 hours would take {usage.planning_sec:,.0f} s of work, those that wait included",
            f"at most {key.max_planning_sec:,.0f} s",
            "Wait until the first of them is a day ago",
            wait,
        )


def _lock_key(session: Session, key: Key) -> None:
    """Let requests of one key pass one by one: each then counts what the ones before it have added."""
    session.execute(select(api_keys.c.id).where(api_keys.c.id == key.id).with_for_update())


def _refuse(key: Key, excess: str, expected: str, remedy: str, wait: float) -> QuotaExceeded:
    error = QuotaExceeded(
        f"the key {key.name!r} is at its quota: {excess}",
        expected=expected,
        remedy=f"{remedy}, or ask the operator for a key with a higher quota",
    )
    error.retry_after_sec = wait
    return error


def find_secret(session: Session) -> bytes | None:
    """What signs sessions and links; None while there is none."""
    value = session.execute(select(secrets.c.value).where(secrets.c.name == _SIGNING_SECRET)).scalar_one_or_none()
    return None if value is None else bytes.fromhex(value)


def make_secret(session: Session) -> bytes:
    """What signs sessions and links, made by the first who asks."""
    insert_new(session, secrets, {"name": _SIGNING_SECRET, "value": random.token_hex(32)})
    secret = find_secret(session)
    assert secret is not None
    return secret


def find_place(session: Session, path: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The dataset and the robot that an address is about; None where it names none, or one that is not there.

    Args:
      path: the variable parts of the address by name; at least one is of `PLACES`.
    """
    if "clip_id" in path:
        return None, session.execute(select(clips.c.robot).where(clips.c.id == path["clip_id"])).scalar_one_or_none()
    if "rollout_id" in path:
        query = select(clips.c.robot).join(rollouts, rollouts.c.clip_id == clips.c.id)
        return None, session.execute(query.where(rollouts.c.id == path["rollout_id"])).scalar_one_or_none()
    if "job_id" in path:
        row = session.execute(select(jobs.c.payload, jobs.c.robot).where(jobs.c.id == path["job_id"])).one_or_none()
        return (None, None) if row is None else (row.payload.get("dataset"), row.robot)
    robot = select(versions.c.robot).where(versions.c.dataset == path["name"]).limit(1)
    return path["name"], session.execute(robot).scalar_one_or_none()
