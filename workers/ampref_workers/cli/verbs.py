"""The verbs that score in processes of their own."""

from __future__ import annotations

from amp_core.cli.group import OPERATORS, START, Verb

VERBS = (
    Verb(
        "demo",
        START,
        "Do everything once: serve, post the bundled motions, score, lock a version, pull it back, verify every digest.",
        "ampref_workers.cli.demo:demo",
        extra="service",
    ),
    Verb(
        "up",
        OPERATORS,
        "Start the whole service in this process: migrated catalog, API and workers, with nothing else to install.",
        "ampref_workers.cli.up:up",
        extra="service",
    ),
    Verb(
        "worker",
        OPERATORS,
        "Score clips and lock versions for the API; any number may run.",
        "ampref_workers.cli.worker:worker",
        extra="worker",
    ),
)
