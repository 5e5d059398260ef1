"""The client of Redis over TLS: a real handshake, and no connection to who cannot prove who he is."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from cache_parts import assert_works, connected
from parts import played

from bento_service.errors import RedisFailed
from redis_servers import RedisServer


@contextlib.asynccontextmanager
async def encrypted(server: RedisServer, certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """Put TLS before a server, as stunnel does: the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError), contextlib.closing(writer):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain_reader, plain_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, plain_writer), copy(plain_reader, writer))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


@pytest.fixture
def authority() -> trustme.CA:
    """Make a certificate authority."""
    return trustme.CA()


@played
async def test_rediss_speaks_tls(redis_server: RedisServer, authority: trustme.CA, tmp_path: Path) -> None:
    """With the authority named in the URL, for the name in the certificate."""
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    async with encrypted(redis_server, authority.issue_cert("localhost", "127.0.0.1")) as port:
        for host in ("localhost", "127.0.0.1"):
            async with connected(f"rediss://{host}:{port}/0?ssl_ca_certs={trusted}") as connection:
                await assert_works(connection)
        async with connected(f"rediss://localhost:{port}/0?ssl_cert_reqs=none") as connection:
            await assert_works(connection)


@played
async def test_rediss_trusts_nobody_unknown(redis_server: RedisServer, authority: trustme.CA, tmp_path: Path) -> None:
    """Another authority's certificate, one for another name, and a server that speaks no TLS are failed calls."""
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    async with (
        encrypted(redis_server, trustme.CA().issue_cert("localhost")) as forged,
        encrypted(redis_server, authority.issue_cert("redis.example")) as another_name,
    ):
        for port in (forged, another_name, redis_server.port):
            async with connected(f"rediss://localhost:{port}/0?ssl_ca_certs={trusted}") as connection:
                with pytest.raises(RedisFailed, match=r"connection|timeout"):
                    await connection.get("key")
