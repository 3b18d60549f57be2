"""The verbs of whoever runs the service for others."""

from __future__ import annotations

from amp_core.cli.group import MOTIONS, OPERATORS, list_verbs

_SERVICE = {
    "ampref_service.cli.api:api": "Serve the HTTP API alone; workers run elsewhere.",
    "ampref_service.cli.backup:backup": "Copy the catalog and every file into a folder, beside the running service.",
    "ampref_service.cli.backup:restore": "Put a backup into an empty place.",
    "ampref_service.cli.fsck:fsck": "Read every stored file, and say which are damaged or missing and what they belong to.",
    "ampref_service.cli.migrate:migrate": "Bring the catalog's schema up to date. Safe to run twice, and by several at once.",
    "ampref_service.cli.token:token": "Make, list and revoke the keys of a service.",
}
_ENGINEERS = {
    "ampref_service.cli.view:view": (
        "Open the page of a clip in the browser, without a service; several files are shown side by side."
    ),
}
VERBS = list_verbs(OPERATORS, _SERVICE, extra="service") + list_verbs(MOTIONS, _ENGINEERS, extra="service")
