"""Damaged blobs: what was found, when, and whether the right bytes are back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from sqlalchemy import func, select, update

from ampref_service.catalog import audit, blob_refs
from ampref_service.catalog.engine import Session, insert_new, now
from ampref_service.catalog.tables import blob_damage, blob_scrub

SERVICE = "service"
"""The actor of what nobody asked for."""


class Damage(NamedTuple):
    """A damaged blob: its digest, what is wrong with it, and where it was set aside."""

    digest: str
    fault: str
    place: str | None


@dataclass(frozen=True)
class Scrub:
    """A round through all blobs: the last digest that was read, the round's beginning, and what was read so far."""

    cursor: str
    started_at: float
    blobs: int
    bytes: int
    damaged: int


_NO_ROUND = Scrub("", 0.0, 0, 0, 0)


def report(session: Session, digest: str, fault: str, place: str | None) -> bool:
    """Write down that a blob is damaged; False where that is known, and it was not set aside only now."""
    if not place and find(session, digest) is not None:
        return False
    values = {"found_at": now(session), "fault": fault, "place": place, "healed_at": None}
    if not insert_new(session, blob_damage, {"digest": digest, **values}):
        session.execute(update(blob_damage).where(blob_damage.c.digest == digest).values(values))
    detail = {"fault": fault, "set_aside": place, "owners": blob_refs.list_owners(session, digest)}
    audit.record(session, SERVICE, "blob.damage", f"blob:{digest}", detail)
    return True


def heal(session: Session, digest: str) -> bool:
    """Write down that a damaged blob has its bytes again; False where no damage is known."""
    query = update(blob_damage).where(blob_damage.c.digest == digest, blob_damage.c.healed_at.is_(None))
    if not session.execute(query.values(healed_at=now(session))).rowcount:
        return False
    audit.record(session, SERVICE, "blob.heal", f"blob:{digest}")
    return True


def find(session: Session, digest: str) -> Damage | None:
    """The damage of a blob that is not healed."""
    query = _OPEN.where(blob_damage.c.digest == digest)
    row = session.execute(query).one_or_none()
    return None if row is None else Damage(*row)


def list_open(session: Session) -> list[Damage]:
    """All damage that is not healed, by digest."""
    return [Damage(*row) for row in session.execute(_OPEN.order_by(blob_damage.c.digest))]


def count_open(session: Session) -> int:
    """How many blobs are damaged, as far as is known."""
    query = select(func.count()).select_from(blob_damage).where(blob_damage.c.healed_at.is_(None))
    return int(session.execute(query).scalar_one())


_OPEN = select(blob_damage.c.digest, blob_damage.c.fault, blob_damage.c.place).where(blob_damage.c.healed_at.is_(None))


def claim_scrub(session: Session, *, lease_sec: float, round_sec: float) -> Scrub | None:
    """The round that is under way, or a new one where one is due; None where another process has it, or it is too early."""
    insert_new(session, blob_scrub, {"id": 1, **asdict(_NO_ROUND), "lease_until": 0.0})
    row = session.execute(select(blob_scrub).with_for_update()).mappings().one()
    at = now(session)
    # A time that lies further ahead than a lease, or ahead at all, was written before the clock went back.
    is_leased = at < row["lease_until"] <= at + lease_sec
    last = row["complete_started_at"]
    is_early = not row["started_at"] and last is not None and last <= at < last + round_sec
    if is_leased or is_early:
        return None
    state = Scrub(**{name: row[name] for name in asdict(_NO_ROUND)}) if row["started_at"] else replace(_NO_ROUND, started_at=at)
    save_scrub(session, state, lease_sec=lease_sec)
    return state


def save_scrub(session: Session, state: Scrub, *, lease_sec: float) -> None:
    """Write down how far a round has come; for so long nobody else goes on with it."""
    session.execute(update(blob_scrub).values(asdict(state) | {"lease_until": now(session) + lease_sec}))


def finish_scrub(session: Session, state: Scrub) -> None:
    """A round has read every blob."""
    result = {f"complete_{name}": value for name, value in asdict(state).items() if name != "cursor"}
    idle = {"cursor": "", "started_at": 0.0, "lease_until": 0.0}
    session.execute(update(blob_scrub).values(result | {"complete_finished_at": now(session)} | idle))


def scrub_age(session: Session) -> float | None:
    """s since the last complete round began: no blob was verified longer ago; None before the first one."""
    started_at = session.execute(select(blob_scrub.c.complete_started_at)).scalar_one_or_none()
    return None if started_at is None else max(0.0, now(session) - started_at)
