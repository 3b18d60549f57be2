"""The OpenAPI document: FastAPI's, with the service's own errors and without the nulls that text cannot express."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

from amp_core.version import __version__
from ampref_service.api import (
    arrays,
    audit,
    batches,
    clips,
    datasets,
    events,
    health,
    jobs,
    keys,
    purges,
    robots,
    rollouts,
    schema,
    versions,
    webhooks,
    workers,
)
from ampref_service.api.problems import Problem, responses

INFO: dict[str, Any] = {
    "title": "ampref",
    "version": __version__,
    "summary": "Reference data for training legged robots with Adversarial Motion Priors",
    "description": """
Physically grounded reference motions for Adversarial Motion Priors: POST a retargeted clip, workers roll it out in MuJoCo and
score it, query the curriculum, lock a dataset version, pull it on a training node.

Every error, whatever its status, is `application/problem+json` of one shape (the schema `Problem`).
""".strip(),
    "license_info": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}

router = APIRouter(generate_unique_id_function=lambda route: route.name)
"""Every endpoint of the service."""

_NOUNS = (
    *(clips, batches, rollouts, arrays, jobs, events, webhooks, datasets, versions, purges, workers, robots),
    *(schema, keys, audit, health),
)
for noun in _NOUNS:
    router.include_router(noun.router)

ROUTES = tuple(route for noun in _NOUNS for route in noun.router.routes)
"""Every route of the API and its reference."""


@functools.cache
def build_document() -> dict[str, Any]:
    """The document, which is the same for every application."""
    document = get_openapi(**INFO, routes=router.routes, separate_input_output_schemas=False)
    schemas = document["components"]["schemas"]
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"Problem": problem}
    for operation in (operation for operations in document["paths"].values() for operation in operations.values()):
        if "security" in operation:
            operation["responses"] |= _describe_problems(401, 403)
            scopes = [scope for scheme in operation["security"] for names in scheme.values() for scope in names]
            operation["description"] += f"\n\nScope: {', '.join(f'`{scope}`' for scope in scopes) or 'any key'}."
            # An open service asks for no key.
            operation["security"].append({})
        operation["responses"] |= _describe_problems(421)
        operation["responses"] = dict(sorted(operation["responses"].items()))
        for parameter in operation.get("parameters", ()):
            _drop_null(parameter["schema"])
    for field in schemas["ClipForm"]["properties"].values():
        _drop_null(field)
    return document


def _describe_problems(*statuses: int) -> dict[str, Any]:
    return {str(status): answer for status, answer in responses(*statuses).items() if status in statuses}


def _drop_null(schema: dict[str, Any]) -> None:
    """A parameter or a form field is left out rather than null: text has no null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del schema["anyOf"]
        schema |= choices[0]
