"""The exports of several rollouts at once, for a training node that fetches what a curriculum query lists."""

from __future__ import annotations

from fastapi import Response
from pydantic import Field

from amp_core.errors import NotFound
from ampref_service.api.deps import CallerDep, ServicesDep, needs
from ampref_service.api.files import ARCHIVE_RESPONSES, StoredFile, serve_archive
from ampref_service.api.params import Body, Digest
from ampref_service.api.strict import make_router
from ampref_service.catalog import rollouts
from ampref_service.catalog.curriculum import MAX_LIMIT

router = make_router("arrays", dependencies=[needs("clips:read")])


class ArraysBody(Body):
    """Which exports to send."""

    digests: list[Digest] = Field(
        min_length=1, max_length=MAX_LIMIT, description="Their `arrays_digest`, each once; a page of clips at most."
    )


@router.post("", response_class=Response, responses=ARCHIVE_RESPONSES)
def post_arrays(body: ArraysBody, services: ServicesDep, caller: CallerDep) -> Response:
    """The exports of several rollouts in one answer: a tar archive with `<SHA-256>.npz` for each digest, in their order.

    It stores nothing and may be repeated. Where one of them is not here, nothing is sent.
    """
    digests = list(dict.fromkeys(body.digests))
    with services.catalog.session() as session:
        sizes = rollouts.array_sizes(session, digests, caller.bounds.robots)
    missing = [digest for digest in digests if digest not in sizes]
    if missing:
        raise NotFound(
            f"{len(missing)} of {len(digests)} exports are not here: {', '.join(missing)}",
            key="body.digests",
            expected="digests of rollouts that are in the catalog",
            remedy="Their clips may have been deleted: ask for the clips again",
        )
    files = [StoredFile(digest, sizes[digest], f"{digest.removeprefix('sha256:')}.npz") for digest in digests]
    return serve_archive(services.blobs, files)
