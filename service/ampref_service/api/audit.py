"""The log of who changed what, over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import Field

from amp_core.errors import Forbidden
from ampref_service.api.deps import ServicesDep, needs
from ampref_service.api.pages import PageView, link_next, page_responses
from ampref_service.api.params import Time, View, text_field
from ampref_service.api.strict import make_router
from ampref_service.catalog import audit
from ampref_service.catalog.records import AuditEvent, Page
from ampref_service.keys import Caller

router = make_router("audit")

Reader = Annotated[Caller, needs("audit:read")]
_Filter = Annotated[str | None, Query(pattern=r"^[^\x00-\x1f\x7f]{1,400}$")]
_Cursor = Annotated[str, text_field(r"^[0-9]{1,18}$", "the id of an event")]


class AuditEventView(View):
    """Somebody changed something."""

    id: int
    at: Time
    actor: str = Field(description="`key:NAME`, `user:NAME`, `operator`, a worker, or `anonymous`.")
    action: str
    subject: str
    detail: dict[str, Any]


class AuditPage(PageView[AuditEventView]):
    """Events in the order in which they happened."""


@router.get("", response_model=AuditPage, responses=page_responses())
def list_events(
    services: ServicesDep,
    request: Request,
    response: Response,
    caller: Reader,
    subject: _Filter = None,
    actor: _Filter = None,
    action: _Filter = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[_Cursor | None, Query(description="Only events after the one with this id.")] = None,
) -> Page[AuditEvent]:
    """Who changed what, in the order in which it happened; the filters are exact."""
    if not caller.bounds.is_open:
        raise Forbidden(
            "the audit log is of the whole service, and this key is bound to a part of it",
            expected="a key without --dataset and --robot",
            remedy="Ask the operator: ampref token create NAME --scope audit:read",
        )
    with services.catalog.session() as session:
        events = audit.list_events(
            session, subject=subject, actor=actor, action=action, after_id=int(cursor or 0), limit=limit + 1
        )
    next_cursor = str(events[limit - 1].id) if len(events) > limit else None
    return link_next(request, response, Page(tuple(events[:limit]), next_cursor))
