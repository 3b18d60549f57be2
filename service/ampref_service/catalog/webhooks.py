"""Webhooks as rows: who gets which events, how far each is, and whose turn it is to deliver.

A deliverer claims a webhook and serves it while its lease lasts. Each claim raises the webhook's token, and a write carries the
token of its claim: of a deliverer that was believed dead nothing is written any more. How often an event is tried is counted in
the row; the clock only says when, and a time further away than the longest pause is over, since the clock was set back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Update, and_, delete, func, insert, or_, select, update

from amp_core.errors import Conflict, NotFound
from ampref_service.catalog import audit, keys
from ampref_service.catalog.engine import Session, new_id, now
from ampref_service.catalog.records import Bounds, EventFilter, Webhook, WebhookClaim
from ampref_service.catalog.tables import event_stream, webhooks

LEASE_SEC = 60.0
PAUSES_SEC = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 28800.0)
"""How long the next try of an event waits after each failure; after one more the webhook is quarantined."""
MAX_WEBHOOKS = 100
_DETAIL_CHARACTERS = 300
_PLAIN_COLUMNS = (
    *("id", "url", "owner", "key_id", "created_at", "state", "reason", "position", "delivered_at", "failures"),
    *("last_failure", "not_before", "test"),
)

_QUERY = select(webhooks, event_stream.c.last_position).join(event_stream, event_stream.c.id == 1)


def _to_webhook(row: RowMapping) -> Webhook:
    bounds = Bounds(*(None if row[name] is None else tuple(row[name]) for name in ("bound_datasets", "bound_robots")))
    return Webhook(
        **{name: row[name] for name in _PLAIN_COLUMNS},
        criteria=EventFilter(tuple(row["kinds"]), row["dataset"], row["robot"], bounds),
        pending=max(0, row["last_position"] - row["position"]),
    )


def add(
    session: Session, url: str, secret: str, criteria: EventFilter, *, owner: str, key_id: str | None, actor: str, host: str
) -> Webhook:
    """Store a webhook that begins with what happens from now on; raises `Conflict` where there are 100 already.

    Args:
      criteria: with the bounds of who makes it.
      host: of the URL, for the audit log; its path may hold a secret.
    """
    # The lock of the stream's row: of two at the same time the second sees the first.
    last = session.execute(select(event_stream.c.last_position).with_for_update()).scalar_one()
    if session.execute(select(func.count()).select_from(webhooks)).scalar_one() >= MAX_WEBHOOKS:
        raise Conflict(f"there are {MAX_WEBHOOKS} webhooks already", remedy="Remove one: ampref webhook remove ID")
    webhook_id = new_id("webhook")
    values = {
        "id": webhook_id,
        "url": url,
        "secret": secret,
        "kinds": list(criteria.kinds),
        "dataset": criteria.dataset,
        "robot": criteria.robot,
        "bound_datasets": None if criteria.bounds.datasets is None else list(criteria.bounds.datasets),
        "bound_robots": None if criteria.bounds.robots is None else list(criteria.bounds.robots),
        "owner": owner,
        "key_id": key_id,
        "created_at": now(session),
        "state": "active",
        "position": last,
        "failures": 0,
        "not_before": 0.0,
        "test_due": 0,
        "token": 0,
        "lease_until": 0.0,
    }
    session.execute(insert(webhooks).values(values))
    audit.record(session, actor, "webhook.add", f"webhook:{webhook_id}", {"host": host, "kinds": list(criteria.kinds)})
    return get(session, webhook_id)


def list_webhooks(session: Session, *, owner: str | None = None) -> list[Webhook]:
    """Every webhook, or those of one owner, the oldest first."""
    query = _QUERY.order_by(webhooks.c.created_at, webhooks.c.id)
    if owner is not None:
        query = query.where(webhooks.c.owner == owner)
    return [_to_webhook(row) for row in session.execute(query).mappings()]


def get(session: Session, webhook_id: str, *, owner: str | None = None) -> Webhook:
    """A webhook; raises `NotFound`, also where it is not of this owner."""
    row = session.execute(_QUERY.where(webhooks.c.id == webhook_id)).mappings().one_or_none()
    if row is None or owner not in (None, row["owner"]):
        raise NotFound(f"no webhook {webhook_id[:80]!r}", remedy="`ampref webhook list` (GET /v1/webhooks) shows them")
    return _to_webhook(row)


def remove(session: Session, webhook_id: str, *, actor: str) -> None:
    """Forget a webhook; what is being sent to it at this moment still arrives."""
    session.execute(delete(webhooks).where(webhooks.c.id == webhook_id))
    audit.record(session, actor, "webhook.remove", f"webhook:{webhook_id}")


def request_test(session: Session, webhook_id: str) -> None:
    """Have a `webhook.test` sent, before anything else and whatever the state is."""
    test = {"id": new_id("event"), "state": "pending", "detail": None, "at": now(session)}
    session.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(test=test, test_due=1))


def retry(session: Session, webhook_id: str, *, actor: str) -> None:
    """Let a webhook be tried at once with as many tries as a new one, also one that was quarantined."""
    values = {"state": "active", "reason": None, "failures": 0, "not_before": 0.0}
    session.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(values))
    audit.record(session, actor, "webhook.retry", f"webhook:{webhook_id}")


def quarantine_all(session: Session, reason: str) -> int:
    """Have nothing sent to any webhook, a test included, until it is retried; returns how many were active."""
    session.execute(update(webhooks).values(test_due=0))
    query = update(webhooks).where(webhooks.c.state == "active").values(state="quarantined", reason=reason)
    return session.execute(query, execution_options={"preserve_rowcount": True}).rowcount


def count_states(session: Session) -> dict[str, int]:
    """How many webhooks are active, fail at this time, and are quarantined."""
    counts = {"active": 0, "failing": 0, "quarantined": 0}
    for state, failures in session.execute(select(webhooks.c.state, webhooks.c.failures)):
        counts["failing" if state == "active" and failures else state] += 1
    return counts


def has_active(session: Session) -> bool:
    """Whether any webhook waits for events or for a test."""
    query = select(webhooks.c.id).where(or_(webhooks.c.state == "active", webhooks.c.test_due == 1)).limit(1)
    return session.execute(query).first() is not None


def is_due(session: Session) -> bool:
    """Whether a claim would find a webhook."""
    return session.execute(select(webhooks.c.id).where(_due(session, now(session))).limit(1)).first() is not None


def claim(session: Session) -> WebhookClaim | None:
    """Take the webhook that is due and was served least recently, or None."""
    while True:
        condition = _due(session, now(session))
        query = select(webhooks.c.id).where(condition).order_by(webhooks.c.lease_until, webhooks.c.id).limit(1)
        webhook_id = session.execute(query.with_for_update(skip_locked=True)).scalar_one_or_none()
        if webhook_id is None:
            return None
        # A rival may have taken and left the row between this look at the clock and its lock; such a lease ends later than any
        # that could be given at that time, as if the clock had been set back. By the time under the lock it is a lease.
        at = now(session)
        if session.execute(select(webhooks.c.id).where(webhooks.c.id == webhook_id, _due(session, at))).first() is not None:
            break
    values = {"token": webhooks.c.token + 1, "lease_until": at + LEASE_SEC}
    session.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(values))
    row = session.execute(_QUERY.where(webhooks.c.id == webhook_id)).mappings().one()
    test_id = row["test"]["id"] if row["test_due"] else None
    return WebhookClaim(_to_webhook(row), row["secret"], row["token"], test_id)


def _due(session: Session, at: float) -> ColumnElement[bool]:
    last = session.execute(select(event_stream.c.last_position)).scalar_one()
    is_leased = and_(webhooks.c.lease_until > at, webhooks.c.lease_until <= at + LEASE_SEC)
    waits = and_(webhooks.c.not_before > at, webhooks.c.not_before <= at + PAUSES_SEC[-1])
    has_events = and_(webhooks.c.state == "active", webhooks.c.position < last, ~waits)
    return and_(~is_leased, or_(webhooks.c.test_due == 1, has_events))


def is_key_valid(session: Session, claim: WebhookClaim) -> bool:
    """Whether the key that made the webhook is neither revoked nor expired; True where it was made without one."""
    if claim.webhook.key_id is None:
        return True
    key = keys.find_by_id(session, claim.webhook.key_id)
    return key is not None and key.is_valid


def advance(session: Session, claim: WebhookClaim, position: int, *, is_delivery: bool = False) -> bool:
    """Events up to a position are dealt with, and the lease is renewed; False where the claim is over.

    Args:
      is_delivery: whether the last of them was delivered, and not only passed by as none that the webhook gets.
    """
    at = now(session)
    values: dict[str, Any] = {"position": position, "lease_until": at + LEASE_SEC}
    if is_delivery:
        values |= {"delivered_at": at, "failures": 0, "last_failure": None, "not_before": 0.0}
    return _write(session, claim, values)


def fail(session: Session, claim: WebhookClaim, detail: str, *, is_final: bool = False) -> str | None:
    """The next event could not be delivered: pause, or quarantine the webhook; returns the reason of a quarantine.

    Args:
      is_final: quarantine it at once.
    """
    at = now(session)
    query = select(webhooks.c.failures).where(webhooks.c.id == claim.webhook.id, webhooks.c.token == claim.token)
    failures = (session.execute(query).scalar_one_or_none() or 0) + 1
    values: dict[str, Any] = {"failures": failures, "last_failure": detail[:_DETAIL_CHARACTERS], "lease_until": at}
    reason = None
    if is_final or failures > len(PAUSES_SEC):
        reason = detail if is_final else f"its next event failed {failures} times, the last time: {detail}"
        values |= {"state": "quarantined", "reason": reason[:_DETAIL_CHARACTERS]}
    else:
        values["not_before"] = at + PAUSES_SEC[failures - 1]
    if not _write(session, claim, values):
        return None
    if reason is not None:
        audit.record(session, audit.ANONYMOUS, "webhook.quarantine", f"webhook:{claim.webhook.id}", {"reason": reason})
    return reason


def release(session: Session, claim: WebhookClaim) -> None:
    """Let others serve the webhook."""
    _write(session, claim, {"lease_until": now(session)})


def end_test(session: Session, claim: WebhookClaim, detail: str | None) -> bool:
    """Keep how a test ended; `detail` is what failed. False where the claim is over or another one is to be sent."""
    state = "delivered" if detail is None else "failed"
    test: Mapping[str, Any] = {"id": claim.test_id, "state": state, "detail": detail, "at": now(session)}
    current = session.execute(select(webhooks.c.test).where(webhooks.c.id == claim.webhook.id)).scalar_one_or_none()
    if current is None or current["id"] != claim.test_id:
        return False
    return _write(session, claim, {"test": test, "test_due": 0})


def _write(session: Session, claim: WebhookClaim, values: Mapping[str, Any]) -> bool:
    query: Update = update(webhooks).where(webhooks.c.id == claim.webhook.id, webhooks.c.token == claim.token).values(values)
    return session.execute(query, execution_options={"preserve_rowcount": True}).rowcount > 0
