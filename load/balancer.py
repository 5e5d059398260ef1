"""nginx in front of several servers, as deploy/nginx.conf has it, without its bounds on one address: the load comes from one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx

from servers import REPOSITORY, free_port

CONFIG = REPOSITORY / "deploy" / "nginx.conf"
READY_SECONDS = 10.0
_LIMITS = re.compile(r"^\s*limit_(req|conn)\w* .*;.*\n", re.MULTILINE)
_TEMPORARY = "client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;"


class BalancerError(Exception):
    """nginx is missing or does not start."""


def binary() -> str:
    """Find nginx, also where only root's PATH has it.

    Raises BalancerError.
    """
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if not found:
        raise BalancerError("no nginx here: apt-get install nginx-light (or your system's nginx)")
    return found


def config(text: str, ports: Sequence[int], listen: int) -> str:
    """Rewrite deploy/nginx.conf for these servers and this port of the loopback interface.

    Raises BalancerError where the file has nothing to rewrite.
    """
    servers = "".join(f"server 127.0.0.1:{port} max_fails=2 fail_timeout=10s; " for port in ports)
    for old, new in (
        ("server 127.0.0.1:3000 max_fails=2 fail_timeout=10s;", servers),
        ("listen 8080;", f"listen 127.0.0.1:{listen};"),
        ("access_log /dev/stdout short;", "access_log off;"),
        ("location ~ ^/(metrics|health)$ { deny all; }", ""),
        ("http {", f"pid nginx.pid;\nhttp {{ {_TEMPORARY}"),
    ):
        if old not in text:
            raise BalancerError(f"deploy/nginx.conf has no line `{old}` any more")
        text = text.replace(old, new, 1)
    return _LIMITS.sub("", text)


class Balancer:
    """A running nginx. ports: of the servers on this machine that share the load."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="reranker-balancer-")
        path = Path(self._folder.name, "nginx.conf")
        path.write_text(config(CONFIG.read_text(encoding="utf-8"), ports, self.port), encoding="utf-8")
        # As root it would else give its workers to a user who may not write into this folder.
        said = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
        command = [binary(), "-p", self._folder.name, "-c", str(path), "-g", said]
        self.process = subprocess.Popen(command)

    def __enter__(self) -> Self:
        end = time.monotonic() + READY_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=READY_SECONDS).status_code == httpx.codes.OK:
                    return self
            except httpx.TransportError:
                time.sleep(0.05)
        self.stop()
        raise BalancerError("nginx did not start; what it said stands above")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(READY_SECONDS)
        self._folder.cleanup()
