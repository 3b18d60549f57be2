"""What the verbs that start a process of the service have in common."""

from __future__ import annotations

import importlib.util
import os
import shlex
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from sqlalchemy import make_url
from typer import BadParameter, Option

from amp_core.cli.exit_codes import TERMINATED
from amp_core.cli.output import Output
from amp_core.errors import NotFound, Unavailable
from ampref_service import logs
from ampref_service.blobs import insecure_endpoint, open_blobs
from ampref_service.catalog import Catalog, keys
from ampref_service.keys import parse_groups
from ampref_service.settings import Settings, unknown_variables

Host = Annotated[str | None, Option(help="Address to listen on; overrides AMPREF_HOST.")]
NoAuth = Annotated[bool, Option("--no-auth", help="Ask nobody for a key: whoever reaches it may do everything.")]
Port = Annotated[int | None, Option(min=0, max=65535, help="Port to listen on, 0 for a free one; overrides AMPREF_PORT.")]


def load_settings(out: Output, **overrides: Any) -> Settings:
    """The settings, with options in the place of variables. Variables that look like settings and are none cost a warning.

    From here on whatever this process makes, catalog, blobs and scratch folders, is for its user alone. Warnings and errors are
    logged to stderr, unless the verb asks for more.
    """
    os.umask(0o077)
    settings = Settings.load(**{name: value for name, value in overrides.items() if value is not None})
    logs.configure("warning", json=settings.log_json)
    unknown = unknown_variables(os.environ)
    if unknown:
        names = ", ".join(name + (f" (did you mean {near}?)" if near else "") for name, near in unknown.items())
        out.warn(f"nothing reads the environment variable{'s' if len(unknown) > 1 else ''} {names}; docs/catalog.md lists all")
    return settings


FIRST_KEY = "ampref token create NAME --role operator"


def check_keys(out: Output, settings: Settings) -> None:
    """Refuse to serve an address that other machines reach without any key; say what else whoever starts it has to know.

    Raises:
      BadParameter: there is no key, and nobody said in so many words that none is needed.
    """
    parse_groups(settings.proxy_groups)
    if settings.auth == "none":
        out.warn(f"no request needs a key (--no-auth): whoever reaches {settings.host} may do everything, deletion included")
        return
    if settings.is_open_without_keys or settings.proxy_user_header:
        return
    if has_catalog(settings):
        with closing(Catalog.open(settings.database_url)) as catalog:
            try:
                with catalog.session() as session:
                    if keys.has_keys(session):
                        return
            except Unavailable:
                return  # The service refuses every request as long as it cannot look a key up.
    option = f" --data-dir {shlex.quote(str(settings.data_dir))}" if settings.database_url.startswith("sqlite") else ""
    if settings.is_loopback:
        out.warn(f"every request needs a key, and there is none yet; make one: {FIRST_KEY}{option}")
        return
    raise BadParameter(
        f"other machines reach {settings.host}, and there is no key yet, so that whoever does could do everything. Make the "
        f"first key: {FIRST_KEY}{option} (or, if everybody may do everything: --no-auth)",
        param_hint="--host",
    )


def make_folder(folder: Path) -> None:
    """Make the data folder.

    Raises:
      Unavailable: it cannot be made or written; the error names it before any library fails on it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Unavailable(
            f"the data folder cannot be written: {error.strerror or error}",
            file=str(folder),
            expected="a folder that this user may write",
            remedy="Choose another with --data-dir or AMPREF_DATA_DIR, or give this one to the user that runs the service",
        ) from None


def has_catalog(settings: Settings) -> bool:
    """Whether there is a database; False for a file that does not exist, which opening it would make."""
    url = make_url(settings.database_url)
    return not url.drivername.startswith("sqlite") or Path(url.database or "").exists()


def check_catalog_is_there(settings: Settings) -> None:
    """Raise `NotFound` where the catalog is a file that does not exist, which opening it would make."""
    if not has_catalog(settings):
        raise NotFound(
            f"no service keeps its catalog in {make_url(settings.database_url).database}",
            expected="the data folder of a service",
            remedy="Name it with --data-dir or AMPREF_DATA_DIR",
        )


def check_blobs(out: Output, settings: Settings) -> None:
    """Warn of a blob store that is reached without TLS.

    Raises:
      Unavailable: the store cannot be reached or written; nothing may say that it is up then.
    """
    endpoint = insecure_endpoint() if settings.blob_url.startswith("s3:") else None
    host = urlsplit(endpoint or "").hostname or ""
    if endpoint and host != "localhost" and not host.startswith("127.") and host != "::1":
        out.warn(f"the blob store is reached without TLS ({endpoint}): everybody on the way can read and change what is stored")
    open_blobs(settings.blob_url).check()


def warn_missing_tests(out: Output, settings: Settings) -> None:
    """Warn at the start, not in the checklist of a version that is locked: tests that need JAX are skipped without it."""
    if settings.lock_tests != "none" and any(importlib.util.find_spec(name) is None for name in ("jax", "optax")):
        out.warn(
            "JAX is not installed here: before a lock tests 1A and smoke and the policy's half of the others are skipped, and "
            "no version is ready for training; install ampref[train]"
        )


def url_of(listener: socket.socket) -> str:
    """The URL where a client on this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let a server end with 0 after SIGTERM, which is how it is meant to be stopped."""
    try:
        yield
    except SystemExit as stop:
        if stop.code not in (None, 0, TERMINATED):
            raise
