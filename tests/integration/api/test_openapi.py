"""The OpenAPI document is true: generated requests, right and wrong ones, get answers that it describes, and never a 500."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig

from ampref_service.app import create_app
from ampref_service.settings import Settings

# Requests that the document allows, and that are refused for what they mean: a file that is no motion, a recipe that is none, a
# selection without clips, a cursor of another list, a lower bound above the upper one.
MEANING = {
    "post_clip",
    "post_batch",
    "post_rollout",
    "post_augment",
    "lock_version",
    "get_clips",
    "list_jobs",
    "yank_version",
    "get_events",
    "add_webhook",
    "create_key",
    "post_purge",
}


class _Seeded:
    """The module's application, which is opened by a fixture after the tests were collected."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})


schemathesis.serializer.alias("application/x-tar", "application/octet-stream")
_seeded = _Seeded()
_document = create_app(Settings(data_dir=Path("never-opened"))).openapi()
schema = schemathesis.openapi.from_dict(_document, config=SchemathesisConfig.from_dict({"generation": {"mode": "all"}}))
schema.app = _seeded


@pytest.fixture(scope="module", autouse=True)
def _open(seeded: Any) -> None:
    _seeded.app = seeded.app


@schema.parametrize()
@settings(
    max_examples=12,
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
