"""`ampref fsck`: whether every stored file is what the catalog promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from amp_core.cli.options import Json, Quiet
from amp_core.cli.output import Output
from amp_core.cpus import usable_cpus
from amp_core.errors import IntegrityError, NotFound
from amp_core.files import expand_home
from ampref_service.blobs import BlobStore, open_blobs
from ampref_service.catalog import Catalog, schema
from ampref_service.catalog.records import JobTerms
from ampref_service.cli.startup import check_catalog_is_there, load_settings, make_folder
from ampref_service.damage import CatalogDamageLog
from ampref_service.integrity import Finding, inspect_blobs, repair_blobs

_OPERATOR = "operator"


def fsck(
    repair: Annotated[
        bool,
        Option("--repair", help="Set damaged files aside, and bring their bytes back from --from or by scoring again."),
    ] = False,
    source: Annotated[
        str | None, Option("--from", metavar="URL", help="A store, or the folder of a backup, to take good bytes from.")
    ] = None,
    rate: Annotated[float, Option(min=0, help="MB to read a second at most; 0 is no bound.")] = 0.0,
    data_dir: Annotated[Path | None, Option(help="Where the service keeps everything; overrides AMPREF_DATA_DIR.")] = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Read every stored file, and say which are damaged or missing and what they belong to. Safe beside a running service.

    Exit 1 when a file that the catalog names is damaged or missing and was not restored.
    """
    out = Output(json_out, quiet=quiet)
    settings = load_settings(out, data_dir=data_dir)
    good_store = None if source is None else _open_source(source)
    check_catalog_is_there(settings)
    catalog = Catalog.open(settings.database_url)
    try:
        schema.check(catalog)
        store = open_blobs(settings.blob_url, CatalogDamageLog(catalog))
        with out.progress("reading", total=1.0) as progress:
            result = inspect_blobs(
                catalog, store, mb_per_sec=rate, threads=max(2, min(8, usable_cpus())), progress=progress.update
            )
        if repair:
            make_folder(settings.data_dir)
            result = repair_blobs(
                catalog,
                store,
                result,
                source=good_store,
                terms=JobTerms(settings.max_attempts),
                actor=_OPERATOR,
                scratch=settings.data_dir,
            )
        elif result.findings:
            remedy = "ampref fsck --repair sets it aside and brings it back where that is possible"
            result.findings = [replace(finding, remedy=remedy) for finding in result.findings]
    finally:
        catalog.close()
    out.print_result(result.to_dict(), [finding.digest for finding in result.findings])
    out.print(f"read {result.blobs:,} files, {result.bytes / 1e6:,.1f} MB, of {settings.blob_url}")
    states = {"restored": "restored", "queued": "will be scored again", "lost": "lost", "found": "damaged or missing"}
    for outcome, text in states.items():
        if count := sum(finding.outcome == outcome for finding in result.findings):
            out.print(f"  {text:<22} {count}")
    lists = {"no row names": result.unreferenced, "other files": result.leftovers, "healed before": result.healed}
    for text, names in lists.items():
        if names:
            out.print(f"  {text:<22} {len(names)}")
    for finding in result.findings:
        if finding.outcome != "restored":
            out.refuse(_to_error(finding))
    if not result.findings:
        out.print("every file that the catalog names is whole")
    out.exit()


def _to_error(finding: Finding) -> IntegrityError:
    return IntegrityError(
        f"the stored file {finding.fault}; it belongs to {', '.join(finding.owners) or 'what was deleted meanwhile'}",
        key=finding.digest,
        remedy=finding.remedy,
    )


def _open_source(source: str) -> BlobStore:
    """The store that a URL or a folder names, to be read; a backup has its files in a folder of its own.

    Raises:
      NotFound: nothing is stored there.
    """
    url = source
    if "://" not in source:
        folder = expand_home(Path(source)).absolute()
        url = (folder / "blobs" if (folder / "backup.json").exists() else folder).as_uri()
    store = open_blobs(url, make=False)
    if next(store.iter_digests(), None) is None:
        raise NotFound(
            f"no stored files are in {source}",
            key="--from",
            expected="the folder of a backup, or a store: a folder with sha256 in it, or its URL",
            remedy="Correct it, then try again; nothing was changed",
        )
    return store
