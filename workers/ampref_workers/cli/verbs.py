"""The verbs that score in processes of their own."""

from __future__ import annotations

from amp_core.cli.group import OPERATORS, START, list_verbs

_DEMO = "Do everything once: serve, post the bundled motions, score, lock a version, pull it back, verify every digest."
_UP = "Start the whole service in this process: migrated catalog, API and workers, with nothing else to install."
_WORKER = "Score clips and lock versions for the API; any number may run."
VERBS = (
    *list_verbs(START, {"ampref_workers.cli.demo:demo": _DEMO}, extra="service,train"),
    *list_verbs(OPERATORS, {"ampref_workers.cli.up:up": _UP}, extra="service,train"),
    *list_verbs(OPERATORS, {"ampref_workers.cli.worker:worker": _WORKER}, extra="worker"),
)
