"""Damaged blobs: what was found, when, and whether the right bytes are back."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import func, select, update

from ampref_service.catalog import audit, blob_refs
from ampref_service.catalog.engine import Session, insert_new, now
from ampref_service.catalog.tables import blob_damage

SERVICE = "service"
"""The actor of what nobody asked for."""


class Damage(NamedTuple):
    """A damaged blob: its digest, what is wrong with it, and where it was set aside."""

    digest: str
    fault: str
    place: str | None


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
