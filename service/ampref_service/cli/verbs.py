"""The verbs of whoever runs the service for others."""

from __future__ import annotations

from amp_core.cli.group import OPERATORS, Verb

VERBS = (
    Verb("api", OPERATORS, "Serve the HTTP API alone; workers run elsewhere.", "ampref_service.cli.api:api", extra="service"),
    Verb(
        "migrate",
        OPERATORS,
        "Bring the catalog's schema up to date. Safe to run twice, and by several at once.",
        "ampref_service.cli.migrate:migrate",
        extra="service",
    ),
)
