"""Certificates for servers of a test's own; whoever needs one is skipped where openssl is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl makes the certificates and is not on PATH")


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for the host `name`, and its key."""
    folder.mkdir()
    paths = folder / "server.crt", folder / "server.key"
    command = [str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return paths
