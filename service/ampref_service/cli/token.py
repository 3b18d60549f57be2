"""`ampref token`: the operator's keys, made directly in the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option, Typer

from amp_core.cli.group import SummaryGroup
from amp_core.cli.options import Json, Quiet, parse_period, refuse_usage
from amp_core.cli.output import Cell, Output
from amp_core.errors import AmprefError
from ampref_service.catalog import Catalog, audit, keys, schema
from ampref_service.cli.startup import check_catalog_is_there, load_settings, make_folder
from ampref_service.keys import (
    MAX_BYTES,
    MAX_QUEUED,
    MAX_SEC,
    ROLES,
    SCOPES,
    describe_key,
    format_time,
    make_bounds,
    make_key,
    resolve_scopes,
)
from ampref_service.settings import Settings

token = Typer(
    cls=SummaryGroup, help="Make, list and revoke the keys of a service.", no_args_is_help=True, rich_markup_mode=None
)

DataDir = Annotated[Path | None, Option(help="Where the service keeps everything; overrides AMPREF_DATA_DIR.")]


@contextmanager
def _open_catalog(out: Output, data_dir: Path | None, *, make: bool = False) -> Iterator[Catalog]:
    """The catalog of the service's settings.

    Args:
      make: where there is none, it is made, so that a key can be there before the first start.
    """
    settings = load_settings(out, data_dir=data_dir)
    if not make:
        check_catalog_is_there(settings)
    elif settings.database_url.startswith("sqlite"):
        make_folder(settings.data_dir)
    catalog = Catalog.open(settings.database_url)
    try:
        if make:
            with catalog.session() as session:
                is_empty = schema.current(session) is None
            if is_empty:
                schema.upgrade(settings.database_url)
        schema.check(catalog)
        yield catalog
    finally:
        catalog.close()


@token.command("create")
def create(
    name: Annotated[str, Argument(metavar="NAME", help="Who or what has it, for example alice-laptop.")],
    role: Annotated[list[str] | None, Option(help=f"{', '.join(ROLES)}; may be repeated; default reader.")] = None,
    scope: Annotated[list[str] | None, Option(help=f"Of {', '.join(SCOPES)}; may be repeated.")] = None,
    dataset: Annotated[
        list[str] | None, Option(metavar="PATTERN", help="Only this dataset, or PREFIX*; may be repeated; default all.")
    ] = None,
    robot: Annotated[list[str] | None, Option(help="Only clips of this robot; may be repeated; default all.")] = None,
    expires: Annotated[
        float | None,
        Option(metavar="PERIOD", parser=parse_period, help="After this it is not valid: 12h, 90d, …; default never."),
    ] = None,
    max_bytes: Annotated[int | None, Option(min=1, max=MAX_BYTES, help="Quota: bytes of its clips that are stored.")] = None,
    max_queued: Annotated[int | None, Option(min=1, max=MAX_QUEUED, help="Quota: jobs of it that wait or run.")] = None,
    max_planning_sec: Annotated[float | None, Option(min=1, max=MAX_SEC, help="Quota: seconds of work in 24 hours.")] = None,
    data_dir: DataDir = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Make a key and print it, once. From the first key on every request to the service needs one."""
    out = Output(json_out, quiet=quiet)
    with refuse_usage():
        text, new = make_key(
            name,
            resolve_scopes(scope or (), role or ()),
            make_bounds(dataset or (), robot or ()),
            expires_in_sec=expires,
            max_bytes=max_bytes,
            max_queued=max_queued,
            max_planning_sec=max_planning_sec,
        )
    with _open_catalog(out, data_dir, make=True) as catalog, catalog.begin() as session:
        is_first = not keys.has_keys(session)
        key = keys.add_key(session, new, actor=audit.OPERATOR)
    out.print_result(describe_key(key) | {"token": text}, [text])
    if not out.to_stdout:
        out.print(text)
    out.note(f"\nthe key {key.name!r} ({key.id}), with {', '.join(key.scopes)}; it is printed this once and stored nowhere")
    bounds = [("datasets", key.bounds.datasets), ("robots", key.bounds.robots)]
    for noun, names in bounds:
        if names is not None:
            out.note(f"  {noun:<9} {', '.join(names)}")
    out.note(f"  expires   {format_time(key.expires_at) or 'never'}")
    if quotas := _format_quotas(describe_key(key)):
        out.note(f"  quotas    {quotas}")
    _check_robots(out, data_dir, robot or ())
    out.note("to use it: export AMPREF_TOKEN=amp_…, or curl -H 'Authorization: Bearer amp_…'")
    if is_first:
        out.note("it is the first: within seconds every request to the service needs a key")


def _format_quotas(row: Mapping[str, Any]) -> str | None:
    """Its quotas by their options, such as `max-queued 6`; None where it has none."""
    quotas = {name: row[name] for name in ("max_bytes", "max_queued", "max_planning_sec") if row[name] is not None}
    return ", ".join(f"{name.replace('_', '-')} {value:,.15g}" for name, value in quotas.items()) or None


def _check_robots(out: Output, data_dir: Path | None, names: Sequence[str]) -> None:
    """Warn of robots that the service's settings do not have; a key may be made before its robot is installed."""
    if not names:
        return
    from amp_core.robot import load_robots  # noqa: PLC0415 - --help needs no MuJoCo

    settings = Settings.load(**({} if data_dir is None else {"data_dir": data_dir}))
    try:
        robots = load_robots(settings.robots)
    except AmprefError as error:
        out.warn(f"the robots of the service cannot be read, to compare the names of --robot with them: {error.what}")
        return
    if missing := sorted(set(names) - robots.keys()):
        out.warn(
            f"the service has no robot {', '.join(map(repr, missing))}, only {', '.join(sorted(robots))} (AMPREF_ROBOTS adds "
            "others); until it has, the key reaches nothing of it"
        )


@token.command("list")
def list_all(data_dir: DataDir = None, json_out: Json = None, quiet: Quiet = False) -> None:
    """List every key with its scopes, bounds and quotas, when it expires, and when it was last used."""
    out = Output(json_out, quiet=quiet)
    with _open_catalog(out, data_dir) as catalog, catalog.session() as session:
        rows = [describe_key(key) for key in keys.list_keys(session)]
    out.print_result(rows, (row["id"] for row in rows))
    if not rows:
        out.print("there is none yet\nnext: ampref token create NAME --role operator")
        return
    columns: dict[str, Cell] = {
        **{"Id": "id", "Name": "name", "Ends with": "hint", "State": "state"},
        "Scopes": lambda row: " ".join(row["scopes"]),
        "Only": lambda row: " ".join([*(row["datasets"] or ()), *(row["robots"] or ())]) or None,
        "Quotas": _format_quotas,
        **{"Expires": "expires_at", "Last used": "last_used_at"},
    }
    out.print_table(columns, rows)


@token.command("revoke")
def revoke(
    name: Annotated[str, Argument(metavar="ID|NAME", help="The key's id, or its name.")],
    data_dir: DataDir = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """End a key for good. A running service refuses it within seconds."""
    out = Output(json_out, quiet=quiet)
    with _open_catalog(out, data_dir) as catalog, catalog.begin() as session:
        key = keys.revoke_key(session, keys.get_key(session, name).id, actor=audit.OPERATOR)
    out.print_result(describe_key(key), [key.id])
    out.print(f"the key {key.name!r} ({key.id}) is revoked; a running service refuses it within seconds")
