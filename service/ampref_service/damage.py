"""Damaged blobs, reported to the catalog, which knows what they belong to."""

from __future__ import annotations

import structlog

from amp_core.errors import Unavailable
from ampref_service.blobs import DamageLog
from ampref_service.catalog import Catalog, blob_refs, damage, thumbnails

log = structlog.get_logger("ampref_service.damage")


class CatalogDamageLog(DamageLog):
    """Writes damage and its end to the log, to `blob_damage` and to the audit events; without a catalog to the log alone."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def add(self, digest: str, fault: str, place: str | None) -> str:
        try:
            with self._catalog.begin() as session:
                # A thumbnail is made again: nothing is lost that anybody would have to bring back.
                if thumbnails.forget(session, [digest]) and digest in blob_refs.unreferenced(session, [digest]):
                    log.warning("thumbnail_damaged", digest=digest, fault=fault, set_aside=place)
                    return ""
                is_new = damage.report(session, digest, fault, place)
                owners = ", ".join(blob_refs.list_owners(session, digest))
        except Unavailable as error:
            log.error("blob_damaged", digest=digest, fault=fault, set_aside=place, not_recorded=error.what)
            return ""
        # Every request for a missing blob comes here; it is told once.
        (log.error if is_new else log.debug)("blob_damaged", digest=digest, fault=fault, set_aside=place, owners=owners)
        return owners

    def heal(self, digest: str) -> None:
        try:
            with self._catalog.session() as session:
                if damage.find(session, digest) is None:
                    return
            with self._catalog.begin() as session:
                is_healed = damage.heal(session, digest)
        except Unavailable as error:
            log.warning("healing_not_recorded", digest=digest, reason=error.what)
            return
        if is_healed:
            log.info("blob_healed", digest=digest)
