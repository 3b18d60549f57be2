"""`ampref backup` and `ampref restore`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import make_url
from typer import Argument, Option

from amp_core.cli.options import Json, Quiet
from amp_core.cli.output import Output
from amp_core.cli.text import counted
from amp_core.errors import AmprefError, Conflict, IntegrityError
from amp_core.files import expand_home
from amp_core.progress import Progress
from ampref_service import backup as backups
from ampref_service.blobs import open_blobs
from ampref_service.catalog import Catalog
from ampref_service.cli.startup import check_catalog_is_there, load_settings, make_folder
from ampref_service.damage import CatalogDamageLog
from ampref_service.settings import Settings

DataDir = Annotated[Path | None, Option(help="Where the service keeps everything; overrides AMPREF_DATA_DIR.")]


def backup(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="The backup's folder; an earlier backup there is renewed.")],
    verify: Annotated[bool, Option("--verify", help="Read all of the backup that is there, instead of making one.")] = False,
    data_dir: DataDir = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Copy the catalog and every file into a folder, beside the running service.

    Exit 1 when a blob was damaged or missing; everything else is in the backup.
    """
    out = Output(json_out, quiet=quiet)
    faults: list[AmprefError]
    if verify:
        result = backups.read_backup(folder)
        with _show_progress(out, f"verifying {folder}") as progress:
            faults = backups.verify_backup(result, progress)
    else:
        settings = load_settings(out, data_dir=data_dir)
        check_catalog_is_there(settings)
        _check_outside(folder, settings)
        catalog = Catalog.open(settings.database_url)
        try:
            with _show_progress(out, f"backing up to {folder}") as progress:
                result = backups.write_backup(
                    catalog, open_blobs(settings.blob_url, CatalogDamageLog(catalog)), folder, progress
                )
        finally:
            catalog.close()
        faults = [
            IntegrityError(
                f"the service's store lacks the blob {digest}, or has it damaged; the backup goes without it",
                remedy="Put it back from an earlier backup",
            )
            for digest in result.absent
        ]
    _print_backup(out, result, faults)
    if verify:
        out.print("  verified   every byte" + (f"; {counted(len(faults), 'blob')} damaged or missing" if faults else ""))
    else:
        is_renewed = result.copied < result.num_blobs
        out.print(f"  copied     {result.copied} blobs{'; the others were there' if is_renewed else ''}")
        out.print(f"next: ampref backup {folder} --verify")
    out.exit()


def restore(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="The backup's folder.")],
    allow_missing: Annotated[
        bool, Option("--allow-missing", help="Restore the rest where blobs of the backup are damaged or missing.")
    ] = False,
    keep_webhooks: Annotated[
        bool,
        Option("--keep-webhooks", help="Let the webhooks go on; without, each waits for ampref webhook retry ID."),
    ] = False,
    data_dir: DataDir = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Put a backup into an empty place.

    That is an empty database, of either kind, and a blob store. Exit 1 when something of the backup was damaged or missing.
    """
    out = Output(json_out, quiet=quiet)
    settings = load_settings(out, data_dir=data_dir)
    source = backups.read_backup(folder)
    if settings.database_url.startswith("sqlite"):
        make_folder(settings.data_dir)
    with _show_progress(out, f"restoring {folder}") as progress:
        faults = backups.restore_backup(
            source,
            settings.database_url,
            open_blobs(settings.blob_url),
            allow_missing=allow_missing,
            keep_webhooks=keep_webhooks,
            progress=progress,
        )
    _print_backup(out, source, faults)
    out.print(f"  restored   to {make_url(settings.database_url).render_as_string(hide_password=True)}")
    out.print("  jobs       those that waited or ran in the backup are run here")
    if source.tables.get("webhooks") and not keep_webhooks:
        out.print("  webhooks   are quarantined: what takes the original's place sends again after ampref webhook retry ID")
    out.print("next: start the service")
    out.exit()


def _check_outside(folder: Path, settings: Settings) -> None:
    """Raise `Conflict` for a backup within what it is a backup of: one disk would lose both."""
    url = urlsplit(settings.blob_url)
    places = [settings.data_dir, *([Path(unquote(url.path))] if url.scheme == "file" else [])]
    target = expand_home(folder).resolve()
    for place in places:
        if target.is_relative_to(place.resolve()):
            raise Conflict(
                f"the backup would be within what it is a backup of, {place}",
                file=str(folder),
                expected="a folder elsewhere, best on another disk",
                remedy="Name another folder",
            )


def _print_backup(out: Output, result: backups.Backup, faults: list[AmprefError]) -> None:
    document: dict[str, Any] = result.to_dict() | {
        "folder": str(result.folder),
        "faults": [fault.to_dict() for fault in faults],
    }
    out.print_result(document, [str(result.folder)])
    out.print(f"the backup {result.folder} of release {result.release}, schema {result.schema}")
    counts = ", ".join(f"{result.tables[table]} {table}" for table in ("clips", "rollouts", "versions"))
    out.print(f"  catalog    {counts}")
    out.print(f"  files      {result.num_blobs} blobs, {result.num_bytes / 1e6:,.1f} MB")
    for fault in faults:
        out.refuse(fault)


@contextmanager
def _show_progress(out: Output, description: str) -> Iterator[Progress]:
    with out.progress(description, total=1.0) as progress:
        yield progress.update
