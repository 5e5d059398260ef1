"""The service called in Python, without a server."""

from __future__ import annotations

import subprocess
import sys

from servers import REPOSITORY

PROGRAM = """
import asyncio
from bento_service.service import Reranker

async def main():
    reranker = Reranker()
    answer = await reranker.rerank(query="capital of France", documents=["Rome", "Paris is the capital of France"], top_n=1)
    print(answer["results"][0]["index"])
    await reranker.stop()

asyncio.run(main())
"""


def test_the_service_answers_in_process(builtin_tag: str) -> None:
    """BentoML's depends makes the real Scorer in the same process."""
    assert builtin_tag
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["1"], done.stderr
