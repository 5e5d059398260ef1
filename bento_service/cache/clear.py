"""Forget everything that is known under one model: `make cache-clear FINGERPRINT=<from /health>`.

Keys are found with SCAN and dropped with UNLINK, a few hundred at a time, so that Redis goes on serving others.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from typing import Any

from redis import exceptions

from bento_service.cache.connection import check_address, make_client
from bento_service.cache.layout import CLEARED_SECONDS, FINGERPRINT_DIGITS, PREFIX, cleared_key
from bento_service.errors import RerankerError, SettingsError
from bento_service.redis_url import RedisAddress
from bento_service.settings import load_settings

_TIMEOUT_SECONDS = 5.0
_KEYS_AT_ONCE = 500


async def clear(address: RedisAddress, fingerprint: str) -> int:
    """Drop all keys of a model and tell the entry workers; the number of keys dropped. Raises redis-py's errors."""
    client: Any = make_client(address, timeout_seconds=_TIMEOUT_SECONDS)
    try:
        dropped = 0
        batch: list[bytes] = []
        async for key in client.scan_iter(match=f"{PREFIX}{fingerprint[:FINGERPRINT_DIGITS]}:*", count=_KEYS_AT_ONCE):
            batch.append(key)
            if len(batch) >= _KEYS_AT_ONCE:
                dropped += await _unlink(client, batch)
                batch = []
        dropped += await _unlink(client, batch)
        # Last: a worker that forgets earlier could still learn from Redis what is about to go.
        await client.set(cleared_key(fingerprint), str(time.time_ns()), ex=CLEARED_SECONDS)
        return dropped
    finally:
        await client.aclose()


async def _unlink(client: Any, keys: list[bytes]) -> int:
    if not keys:
        return 0
    pipeline = client.pipeline(transaction=False)
    for key in keys:  # one by one, since in a cluster they lie in different slots
        pipeline.execute_command("UNLINK", key)
    return sum(await pipeline.execute())


def main() -> None:
    """Read the command line and the settings; exit 1 with one line where that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fingerprint", required=True, help="model.fingerprint of /health, or its first 16 digits or more")
    fingerprint = parser.parse_args().fingerprint
    try:
        if not re.fullmatch(rf"[0-9a-f]{{{FINGERPRINT_DIGITS},64}}", fingerprint):
            raise SettingsError(
                f"the fingerprint is at least {FINGERPRINT_DIGITS} hex digits: /health shows it as model.fingerprint"
            )
        address = load_settings().redis_address
        if address is None:
            raise SettingsError(
                "REDIS_ENABLED is not true: set it and REDIS_URL as for the server (without Redis, a restart forgets)"
            )
        check_address(address)
        dropped = asyncio.run(clear(address, fingerprint))
    except RerankerError as error:
        sys.exit(f"error: {error}")
    except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
        sys.exit(f"error: Redis at REDIS_URL did not do it ({type(error).__name__})")
    print(f"{dropped} keys dropped; entry workers that use this Redis forget within a second")


if __name__ == "__main__":
    main()
