"""What a locked version was tested for: the whole report, and the members that a test would need again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import Field

from amp_core.errors import NotFound
from amp_core.strict_json import read_json
from ampref_service.api.blob import IMMUTABLE, REVALIDATE, StoredFile, file_responses, serve
from ampref_service.api.datasets import READ, YANKED, find_version, yank_warning
from ampref_service.api.deps import Service
from ampref_service.api.pages import LINK_HEADER, PageView, link_next
from ampref_service.api.params import DatasetName, Position, VersionOrAlias, View
from ampref_service.api.strict import StrictRoute
from ampref_service.catalog import datasets as queries
from ampref_service.catalog import sources
from ampref_service.errors import responses

router = APIRouter(prefix="/datasets", route_class=StrictRoute, tags=["datasets"])


class MemberView(View):
    """Frames of one rollout in a version: a segment of it."""

    position: int = Field(description="The segment's number in the version.")
    clip_id: str
    rollout_id: str
    name: str
    start: int
    end: int = Field(description="Half-open: the frames `start ≤ k < end` of the rollout.")
    tier: int


class MemberPage(PageView[MemberView]):
    """Segments of a version, in their order."""


@router.get(
    "/{name}/versions/{version}/members", responses={200: {"headers": LINK_HEADER}, **responses(404, 422)}, dependencies=READ
)
def list_members(
    name: DatasetName,
    version: VersionOrAlias,
    opened: Service,
    request: Request,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[Position | None, Query(description="`next_cursor` of the page before.")] = None,
) -> MemberPage:
    """Which frames of which rollouts a version holds, segment by segment."""
    with opened.catalog.session() as session:
        found = find_version(session, name, version)
        members = queries.list_members(session, found.id, after=-1 if cursor is None else int(cursor), limit=limit)
    following = str(members[-1].position) if len(members) == limit else None
    link_next(request, response, following)
    return MemberPage(items=[MemberView.model_validate(member) for member in members], next_cursor=following)


# Nothing may be loaded and nothing may run, whatever a clip's name would come to hold.
_OF_PAGE = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "cache-control": REVALIDATE}
_HTML: dict[str, Any] = {"text/html": {"schema": {"type": "string"}}}
_JSON: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}


def _answers() -> dict[int | str, dict[str, Any]]:
    """As of a file; the whole of it may be asked for as a page."""
    found = file_responses("application/json", 404)
    whole = found[200]
    headers = whole["headers"] | YANKED
    return found | {200: whole | {"description": "The report", "content": _JSON | _HTML, "headers": headers}}


@router.get("/{name}/versions/{version}/verification", response_class=Response, responses=_answers(), dependencies=READ)
def get_verification(
    name: DatasetName,
    version: VersionOrAlias,
    opened: Service,
    request: Request,
    format: Annotated[
        Literal["json", "html"] | None, Query(description="Default: as `Accept` asks, JSON where that allows it.")
    ] = None,
) -> Response:
    """Everything that the readiness tests found before the lock, as JSON or as one page for people."""
    with opened.catalog.session() as session:
        found = find_version(session, name, version)
        report = sources.get_verification(session, found.id)
    if report is None:
        raise NotFound(
            f"{found.dataset}=={found.version} was locked before there were readiness tests",
            remedy=f"Test it as it is: ampref verify {found.dataset}=={found.version}",
        )
    headers = yank_warning(found) | {"vary": "accept"}
    if format == "html" or (format is None and _wants_page(request)):
        return HTMLResponse(_page(opened, report.digest), headers=headers | _OF_PAGE)
    cache = IMMUTABLE if found.version == version else REVALIDATE
    return serve(request, opened.blobs, StoredFile(report.digest, report.size, report.name, report.media_type, cache), headers)


def _wants_page(request: Request) -> bool:
    """Whether a browser asks; everything else gets JSON."""
    accept = request.headers.get("accept", "")
    return "text/html" in accept and "application/json" not in accept


def _page(opened: Service, digest: str) -> str:
    from amp_core.verify.html import page

    with opened.blobs.open(digest) as file:
        report = read_json(file.read())
    return page(report, groups=report["groups"])
