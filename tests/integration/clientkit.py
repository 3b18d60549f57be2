"""What the tests of the client share: a retry that is soon over, addresses, and the files of its cache."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from amp_core.client import Retry

QUICK = Retry(attempts=3, timeout=10, wait_initial=0.01, wait_max=0.02, connect=2, read=5)
DEAD = "http://127.0.0.1:9"  # The discard port: nothing listens there.
SPEC = "walk==0.11.0"


def same_files(pulled: Any, bundle: Any) -> bool:
    return all(path.read_bytes() == file.path.read_bytes() for path, file in zip(pulled.files, bundle.files, strict=True))


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "partial").iterdir())


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def make_certificate(folder: Path, names: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for these names (`DNS:a,IP:b`), which nobody trusts yet, and a server's context with it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = [openssl, "req", "-x509", *curve, "-addext", f"subjectAltName={names}", *files]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
