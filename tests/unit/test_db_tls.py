from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from config import Settings
from db import DatabaseError
from db.errors import BadTLS
from db.tls import ssl_argument


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_modes_that_check_nothing_stay_asyncpg_s(mode: str) -> None:
    """Below `require` the root certificate is not even read, as in libpq."""
    settings = Settings.load("worker", {"DB_SSLMODE": mode, "DB_SSLROOTCERT": "/missing"})
    assert ssl_argument(settings) == mode


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The error names the setting, the file and the reason."""
    missing = tmp_path / "missing.crt"
    settings = Settings.load("worker", {"DB_SSLMODE": "verify-full", "DB_SSLROOTCERT": str(missing)})
    with pytest.raises(BadTLS, match=f"DB_SSLROOTCERT={missing}: No such file or directory"):
        ssl_argument(settings)


def test_a_file_without_a_certificate(tmp_path: Path) -> None:
    """A file of another kind is refused as such."""
    text = tmp_path / "notes.txt"
    text.write_text("not a certificate")
    settings = Settings.load("worker", {"DB_SSLMODE": "require", "DB_SSLROOTCERT": str(text)})
    with pytest.raises(BadTLS, match="holds no PEM certificate"):
        ssl_argument(settings)


def test_the_system_s_authorities_need_the_name_checked() -> None:
    """`system` takes verify-full, as in libpq: any site has a certificate of theirs."""
    with pytest.raises(DatabaseError, match="set DB_SSLMODE=verify-full"):
        ssl_argument(Settings.load("worker", {"DB_SSLMODE": "require", "DB_SSLROOTCERT": "system"}))
    context = ssl_argument(Settings.load("worker", {"DB_SSLMODE": "verify-full", "DB_SSLROOTCERT": "system"}))
    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
