"""DB_SSLMODE and DB_SSLROOTCERT against a server with a certificate: TLS ends in a proxy before the real server."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config import Settings
from db import connect, migrate, open_database
from db.errors import BadTLS
from tests.certificates import certificate, needs_openssl
from tests.proxy import open_proxy

Environ = dict[str, str]
pytestmark = needs_openssl


@pytest.fixture
async def tls_environ(environ: Environ, tmp_path: Path) -> AsyncIterator[Environ]:
    """The environment of a server at `localhost` with a certificate for that name."""
    crt, key = certificate(tmp_path / "tls", "localhost")
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        proxy.tls.load_cert_chain(crt, key)
        yield environ | {"DB_HOST": "localhost", "DB_PORT": str(proxy.listens_on), "DB_SSLROOTCERT": str(crt)}


async def answer(environ: Environ, mode: str, **changes: str) -> object:
    """A value from the server in that mode."""
    async with connect(Settings.load("poolctl", environ | {"DB_SSLMODE": mode} | changes)) as connection:
        return await connection.fetchval("SELECT 1")


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca", "verify-full"])
async def test_the_right_certificate_is_accepted(tls_environ: Environ, mode: str) -> None:
    """With the authority's file every mode that speaks TLS connects."""
    assert await answer(tls_environ, mode) == 1


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_another_authority_is_refused(tls_environ: Environ, tmp_path: Path, mode: str) -> None:
    """A certificate that the named authority did not sign is BadTLS, as in libpq with `require` too."""
    other, _ = certificate(tmp_path / "other", "localhost")
    with pytest.raises(BadTLS, match="certificate verify failed"):
        await answer(tls_environ, mode, DB_SSLROOTCERT=str(other))


async def test_only_verify_full_looks_at_the_name(tls_environ: Environ) -> None:
    """Under another name verify-ca connects and verify-full does not."""
    assert await answer(tls_environ, "verify-ca", DB_HOST="127.0.0.1") == 1
    with pytest.raises(BadTLS, match="IP address mismatch"):
        await answer(tls_environ, "verify-full", DB_HOST="127.0.0.1")


async def test_the_pool_and_migrations_check_the_same(tls_environ: Environ) -> None:
    """verify-full holds for open_database and migrate too: asyncpg alone would look in ~/.postgresql."""
    settings = Settings.load("worker", tls_environ | {"DB_SSLMODE": "verify-full"})
    assert await migrate(settings) == []
    async with open_database(settings) as database:
        assert database.pool_snapshot().size == 2
