"""`ampref migrate`: the catalog's schema."""

from __future__ import annotations

from typing import Annotated

from sqlalchemy import make_url
from typer import Option

from amp_core.cli.options import Json, Quiet
from amp_core.cli.output import Output
from ampref_service.catalog import schema
from ampref_service.cli.startup import load_settings, make_folder


def migrate(
    to: Annotated[str | None, Option(metavar="REVISION", help="Go down to this revision instead; base is empty.")] = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Bring the catalog's schema up to date. Safe to run twice, and by several at once."""
    out = Output(json_out, quiet=quiet)
    settings = load_settings(out)
    if to is None and settings.database_url.startswith("sqlite"):
        make_folder(settings.data_dir)
    revision = schema.upgrade(settings.database_url) if to is None else schema.downgrade(settings.database_url, to)
    database = make_url(settings.database_url).render_as_string(hide_password=True)
    out.print_result({"revision": revision, "database": database}, [revision])
    out.print(f"the catalog {database} is at revision {revision}")
    if to is None:
        out.print("next: ampref api, and ampref worker on any number of machines")
