"""Many clips in one request: a tar archive in, a line for each member out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from itertools import islice
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import StreamingResponse

from amp_core.errors import AmprefError, TooLarge
from amp_core.strict_json import format_json
from ampref_service.api.clip_schemas import ClipTerms, Submitted
from ampref_service.api.deps import ServicesDep, job_terms, needs
from ampref_service.api.problems import BODY_STATUSES, format_problem, log_refusal, responses
from ampref_service.api.strict import make_router, parse_body
from ampref_service.archives import iterate_members
from ampref_service.batches import Batch, store_batch
from ampref_service.keys import Caller
from ampref_service.recipes import resolve_recipe
from ampref_service.services import Services
from ampref_service.uploads import split_tags

router = make_router("clips")

MEDIA_TYPE = "application/x-ndjson"
_TAR = "application/x-tar"


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line of JSON for each member, in order, once it is stored: `member`, `status` (202 accepted, 200 "
        "known already, else that of the problem), and `submitted` or `problem`. Then one with `num_members`, `num_accepted`, "
        "`num_known` and `num_refused`, without which the answer is not whole.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    },
    **responses(404, 409, *BODY_STATUSES),
}
_REQUEST = {
    "requestBody": {
        "required": True,
        "description": "A tar archive (not compressed) of motion files; folders in it are passed over.",
        "content": {_TAR: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(":batch", response_class=StreamingResponse, responses=_RESPONSES, openapi_extra=_REQUEST)
async def post_batch(
    query: Annotated[ClipTerms, Query()],
    request: Request,
    services: ServicesDep,
    caller: Annotated[Caller, needs("clips:write")],
) -> StreamingResponse:
    """Upload many motions as one tar archive and have them scored; each is told of by itself, and may be sent again."""
    caller.check_robot(query.robot)
    recipe = None if query.recipe is None else parse_body(query.recipe.encode(), subject="the recipe")
    resolved_recipe = resolve_recipe(query.mode, query.seed, recipe, max_plans=services.settings.max_plans)
    robot, terms = services.robot(query.robot), job_terms(services, caller, query.priority)
    tags = split_tags(query.tags)
    archive = services.spool.open_file()
    try:
        async for chunk in request.stream():
            await services.spool.write(archive, chunk)
        most = services.settings.max_batch_clips
        members = await to_thread.run_sync(
            lambda: list(islice(iterate_members(archive), most + 1)), limiter=services.spool.threads
        )
        if len(members) > most:
            raise TooLarge(
                "the archive has too many members",
                key="body",
                expected=f"at most {most:,}",
                remedy="Send it in parts, as `ampref submit FOLDER` does",
            )
    except BaseException:
        archive.close()
        raise
    reading = query.model_dump(include={"format", "fps", "quat_order"}) | {"tags": tags}
    batch = Batch(archive, members, robot, resolved_recipe, terms, reading, caller.name)
    return StreamingResponse(_format_lines(request, services, batch), media_type=MEDIA_TYPE)


async def _format_lines(request: Request, services: Services, batch: Batch) -> AsyncIterator[bytes]:
    counts: Counter[str] = Counter()
    with batch.archive:
        async for member, outcome in store_batch(services, batch):
            if isinstance(outcome, AmprefError):
                counts["refused"] += 1
                log_refusal(request.scope, outcome)
                line = {"status": outcome.status, "problem": format_problem(request.scope, outcome)}
            else:
                counts["known" if outcome.is_known else "accepted"] += 1
                submitted = Submitted.model_validate(outcome).model_dump(mode="json")
                line = {"status": 200 if outcome.is_known else 202, "submitted": submitted}
            yield _format_line({"member": member.name, **line})
    totals = {f"num_{name}": counts[name] for name in ("accepted", "known", "refused")}
    yield _format_line({"num_members": len(batch.members), **totals})


def _format_line(line: Mapping[str, Any]) -> bytes:
    return format_json(line, ensure_ascii=True).encode() + b"\n"
