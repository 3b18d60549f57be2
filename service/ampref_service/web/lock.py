"""A version grown from a selection: the clips that were chosen on the Clips page, or all that a query leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Form, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from amp_core.dataset.names import check_dataset_name
from amp_core.errors import AmprefError, InputRefused
from amp_core.readiness import TEST_TITLES
from amp_core.tiers import Tier
from ampref_service.api import versions as versions_api
from ampref_service.api.dataset_schemas import LockBody
from ampref_service.api.deps import AnnouncerDep, ServicesDep, needs
from ampref_service.api.params import Id
from ampref_service.catalog import clips, datasets
from ampref_service.catalog.curriculum import MAX_LIMIT, ClipQuery, list_clips
from ampref_service.catalog.records import Clip
from ampref_service.keys import Caller
from ampref_service.services import Services
from ampref_service.web.clips import parse_query
from ampref_service.web.site import lead_to, make_page_router, refuse_fields, render_page

router = make_page_router(dependencies=[needs("clips:read")])

Writer = Annotated[Caller, needs("datasets:write")]

MOST = 20_000
"""Clips of a query that are taken as one selection; the command and the API take tags for more."""


@dataclass(frozen=True)
class Selection:
    """Chosen clips, all of one robot, and what they come to.

    Args:
      query: what left them; its mode and gate profile say which rollouts are taken. Empty for clips named one by one.
      text: the query as an address has it.
    """

    clips: Sequence[Clip]
    query: ClipQuery
    text: str

    @property
    def robot(self) -> str:
        return self.clips[0].robot if self.clips else ""

    @property
    def seconds(self) -> float:
        return sum(clip.duration_sec for clip in self.clips)


@router.get("/lock")
def show_form(
    request: Request,
    services: ServicesDep,
    caller: Writer,
    clip: Annotated[list[Id] | None, Query(max_length=500)] = None,
    marker: Annotated[str | None, Query(max_length=1, alias="chosen")] = None,
) -> Response:
    """The form for a version of the named clips, or of those that the address's filters leave; none where none was chosen."""
    if clip or marker is None:
        selection = _select(services, caller, clip or (), "" if clip else request.url.query)
    else:
        selection = Selection((), ClipQuery(), "")
    return _show_form(request, services, caller, selection, {"tier": ["0"]})


@router.post("/lock")
def lock_selection(
    request: Request,
    services: ServicesDep,
    caller: Writer,
    announcer: AnnouncerDep,
    name: Annotated[str, Form(max_length=100)],
    version: Annotated[str, Form(max_length=64)],
    clip: Annotated[list[Id] | None, Form(max_length=500)] = None,
    query: Annotated[str, Form(max_length=8000)] = "",
    tier: Annotated[list[str] | None, Form(max_length=2)] = None,
    segments: Annotated[str, Form(max_length=2)] = "",
    waived_test: Annotated[str, Form(max_length=10)] = "",
    waiver_reason: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    """Queue the lock, and go to the jobs; what cannot be locked is said on the form, which keeps what was fields."""
    selection = _select(services, caller, clip or (), query)
    fields = {"name": name, "version": version, "tier": tier or [], "segments": segments}
    fields |= {"waived_test": waived_test, "waiver_reason": waiver_reason}
    tiers = [int(number) for number in tier or () if number in ("0", "1")]
    document = {
        "version": version.strip(),
        "select": {
            "robot": selection.robot,
            "tier": tiers,
            "clips": [item.id for item in selection.clips],
            "segments": bool(segments),
            "mode": selection.query.mode,
            "gate_profile": selection.query.gate_profile,
        },
        "waivers": [{"test": waived_test, "reason": waiver_reason}] if waived_test else [],
    }
    try:
        if not tiers:
            raise InputRefused("no tier is chosen", key="tier", expected="Tier 0, Tier 1 or both")
        check_dataset_name(name.strip())
        caller.check_dataset(name.strip())
        answer = versions_api.lock_version(name.strip(), LockBody.model_validate(document), services, announcer, caller)
    except (AmprefError, ValidationError) as fault:
        error = fault if isinstance(fault, AmprefError) else refuse_fields(fault)
        return _show_form(request, services, caller, selection, fields, error)
    return lead_to(request, f"/jobs#{answer['job'].id}")


def _select(services: Services, caller: Caller, clip_ids: Sequence[str], text: str) -> Selection:
    query = ClipQuery() if clip_ids else replace(parse_query(text), robots=caller.bounds.robots, limit=MAX_LIMIT, cursor=None)
    with services.catalog.session() as session:
        if clip_ids:
            members: list[Clip] = [clips.get(session, clip_id) for clip_id in dict.fromkeys(clip_ids)]
        else:
            members = list(_iterate_clips(session, query))
    robots = sorted({clip.robot for clip in members})
    for robot in robots:
        caller.check_robot(robot)
    if len(robots) > 1:
        raise InputRefused(
            f"the selection has clips of {len(robots)} robots: {', '.join(robots)}",
            key="robot",
            expected="clips of one robot: a version has one",
            remedy="Filter by the robot first",
        )
    return Selection(members, query, text)


def _iterate_clips(session: Any, query: ClipQuery) -> Iterator[Clip]:
    count = 0
    while True:
        page = list_clips(session, query)
        yield from page.items
        count += len(page.items)
        if page.next_cursor is None:
            return
        if count >= MOST:
            raise InputRefused(
                f"the query leaves more than {MOST:,} clips",
                expected="a narrower query",
                remedy="Tag what is to be locked, and lock by the tag: ampref dataset lock NAME VERSION --tag TAG",
            )
        query = replace(query, cursor=page.next_cursor)


def _show_form(
    request: Request,
    services: Services,
    caller: Caller,
    selection: Selection,
    fields: dict[str, Any],
    error: AmprefError | None = None,
) -> Response:
    with services.catalog.session() as session:
        rows = datasets.list_datasets(session, caller.bounds)
    values = {
        "title": "Lock a version",
        "section": "datasets",
        "selection": selection,
        "fields": {"name": "", "version": "", "segments": "", "waived_test": "", "waiver_reason": ""} | fields,
        "error": error,
        "datasets": [row for row in rows if not selection.robot or row.versions[0].robot == selection.robot],
        "tiers": (Tier.TIER_0, Tier.TIER_1),
        "tests": TEST_TITLES,
        "may_waive": "datasets:waive" in caller.scopes,
    }
    return render_page(request, "lock.html", values, status=200 if error is None else error.status)
