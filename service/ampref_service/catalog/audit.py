"""The log of who changed what. Rows are only ever added; the database refuses anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select

from ampref_service.catalog.engine import Session, now
from ampref_service.catalog.records import AuditEvent
from ampref_service.catalog.tables import audit_events

ANONYMOUS = "anonymous"
"""Who acts until there are keys."""

OPERATOR = "operator"
"""Who acts on the catalog without the service: whoever may write its files needs no key."""

_ADD = insert(audit_events).inline()


def record(session: Session, actor: str, action: str, subject: str, detail: Mapping[str, Any] | None = None) -> None:
    """Add an event in the transaction of the change itself, so that there is neither without the other."""
    event = {"at": now(session), "actor": actor, "action": action, "subject": subject[:400], "detail": dict(detail or {})}
    session.execute(_ADD, event)


def list_events(
    session: Session,
    *,
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    after_id: int = 0,
    limit: int = 100,
) -> list[AuditEvent]:
    """Events in the order they happened, from the one after `after_id`; all, or those of one subject (`version:walk==1`), one
    actor, one action."""
    query = select(audit_events).where(audit_events.c.id > after_id).order_by(audit_events.c.id).limit(min(max(limit, 1), 1001))
    for column, value in ((audit_events.c.subject, subject), (audit_events.c.actor, actor), (audit_events.c.action, action)):
        if value is not None:
            query = query.where(column == value)
    return [AuditEvent(**row) for row in session.execute(query).mappings()]
