"""The OpenAPI document is true: generated requests, right and wrong ones, get answers that it describes, and never a 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig

# Requests that the document allows, and that are refused for what they mean: a file that is no motion, a recipe that is none, a
# selection without clips, a cursor of another list, a lower bound above the upper one, rollouts of clips that have none.
MEANING = {
    "post_clip",
    "post_batch",
    "post_rollout",
    "post_augment",
    "post_purge",
    "lock_version",
    "get_clips",
    "get_histogram",
    "get_facets",
    "list_jobs",
    "yank_version",
    "get_events",
    "add_webhook",
    "create_key",
}


schemathesis.serializer.alias("application/x-tar", "application/octet-stream")


@pytest.fixture(scope="module")
def operations(seeded: Any) -> Any:
    """What the document says of every operation, asked of an application that is open already."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await seeded.app(scope, receive, send)
            return
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    config = SchemathesisConfig.from_dict({"generation": {"mode": "all"}})
    schema = schemathesis.openapi.from_dict(seeded.app.openapi(), config=config)
    schema.app = answer
    return schema


@pytest.fixture(autouse=True)
def _name_node(request: pytest.FixtureRequest) -> None:
    """Schemathesis 4.32 asks for the name that this attribute had before pytest 9.2."""
    request.node._nodeid = request.node.nodeid


# Each operation is a subtest. As tests of their own they all have one id with this pytest, and xdist, which deals tests out by
# their ids, runs one of them; and every process makes all their requests when it collects the tests.
schema = schemathesis.pytest.from_fixture("operations")


@schema.parametrize()
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_documented(case: Any) -> None:
    excluded = []
    if case.operation.definition.raw["operationId"] in MEANING:
        excluded = [CHECKS.get_one("positive_data_acceptance")]
    case.call_and_validate(excluded_checks=excluded)


def test_every_operation_says_what_it_can_answer(seeded: Any) -> None:
    document = seeded.app.openapi()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            label = f"{method} {path}"
            assert operation.get("description"), label
            assert {"422", "500", "503"} <= operation["responses"].keys(), label
            for status, response in operation["responses"].items():
                if int(status) >= 400 and "readyz" not in path:
                    assert list(response["content"]) == ["application/problem+json"], f"{label} {status}"
    assert "HTTPValidationError" not in str(document)
