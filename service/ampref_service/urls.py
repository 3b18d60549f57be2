"""The URLs of the catalog, the blob store and the broker, read as a whole before anything is opened by them.

A URL may hold a password: no error repeats any part of one.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import psycopg
from psycopg.conninfo import make_conninfo, timeout_from_conninfo
from sqlalchemy import URL, exc, make_url

from amp_core.errors import InputRefused
from amp_core.files import expand_home

_DATABASE = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DB"
_BLOBS = "file:///FOLDER or s3://BUCKET/PREFIX"
_BROKER = "redis://HOST:PORT/DB or rediss://HOST:PORT/DB"
_ESCAPES = "; in a password write @ as %40, / as %2F, : as %3A, # as %23 and ? as %3F"
_LAST_PORT = 65535


def normalize_url(url: str) -> str:
    """A database URL with its driver: `postgresql://` and `postgres://` mean psycopg 3."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg", "postgres"):
        raise InputRefused("the database URL is of no kind that is known", expected=_DATABASE)
    if scheme in ("postgresql", "postgres"):
        return f"postgresql+psycopg://{rest}"
    if scheme.startswith("sqlite") and (rest in ("", "/") or ":memory:" in rest or "mode=memory" in rest):
        raise InputRefused("an in-memory SQLite catalog cannot be shared with workers", expected="sqlite:///FILE")
    return url


def check_database_url(url: str) -> None:
    """Raise `InputRefused` for a URL that no database can be opened by."""
    try:
        address = make_url(normalize_url(url))
        _read_options(address)
    except (exc.ArgumentError, exc.SAWarning, psycopg.Error, ValueError, TypeError):
        raise InputRefused("the database URL or an option in it cannot be read", expected=_DATABASE + _ESCAPES) from None
    if "@" in (address.host or "") or not 0 < (address.port or 1) <= _LAST_PORT:
        raise InputRefused("the host or port of the database URL cannot be used", expected=_DATABASE + _ESCAPES)
    if address.get_backend_name() == "sqlite":
        database = address.database or ""
        if not database or "\0" in database or (database.startswith("~") and not _has_home(database)):
            raise InputRefused("the database URL names no file", expected="sqlite:///FILE")


def _has_home(path: str) -> bool:
    try:
        expand_home(Path(path))
    except InputRefused:
        return False
    return True


def _read_options(address: URL) -> None:
    """Let the driver read what it would connect with."""
    with warnings.catch_warnings(action="error", category=exc.SAWarning):
        options = address.get_dialect()().create_connect_args(address)[1]
    if address.get_backend_name() == "postgresql":
        make_conninfo(**options)
        timeout_from_conninfo(dict(options))


def check_blob_url(url: str) -> None:
    """Raise `InputRefused` for a URL that names no blob store."""
    parts = _split(url, "blob URL", _BLOBS)
    if parts.scheme not in ("file", "memory", "s3", "gs", "az"):
        raise InputRefused("the blob URL is of no kind that is known", expected=_BLOBS)
    is_folder = parts.netloc in ("", "localhost") and parts.path != "" and "\0" not in unquote(parts.path)
    if parts.scheme == "file" and not is_folder:
        raise InputRefused("the blob URL names no folder", expected="file:/// and an absolute path")


def check_broker_url(url: str) -> None:
    """Raise `InputRefused` for a URL that no broker has. Options behind `?` are read where the broker is used."""
    parts = _split(url, "broker URL", _BROKER + _ESCAPES)
    if parts.scheme not in ("redis", "rediss", "memory"):
        raise InputRefused("the broker URL is of no kind that is known", expected=_BROKER)
    # What a character of a password has cut off is behind the host.
    is_cut = "@" in parts.path + parts.query or parts.fragment != ""
    if parts.scheme != "memory" and (is_cut or not re.fullmatch(r"/?[0-9]{0,9}", parts.path, re.ASCII)):
        raise InputRefused("the broker URL has no database's number behind its host", expected=_BROKER + _ESCAPES)


def _split(url: str, noun: str, expected: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InputRefused(f"the host or port of the {noun} cannot be read", expected=expected) from None
    return parts
