"""What the machine must give before any worker starts: a port that nobody listens on, and room for the metrics' files.

BentoML would end in a traceback over the one, and start workers that die by a signal, for ever, over the other.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import tempfile
from pathlib import Path

import click
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLConfigException

# A worker process writes some tens of KB into files that it maps into its memory: a full disk would end it with SIGBUS.
_METRICS_BYTES_A_PROCESS = 2 * 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_port() -> None:
    """Check the port that `bentoml serve` will listen on; BentoMLConfigException stops the start with one line.

    To be called when the service is imported: afterwards `bentoml serve` empties the metrics directory of whoever listens there.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.command.name != "serve":
        return  # a program serves, and only it knows where; or nobody does
    host = context.params.get("host") or BentoMLContainer.http.host.get()
    port = context.params.get("port") or BentoMLContainer.http.port.get()
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET  # noqa: PLR2004  IP's versions
    except ValueError:
        return  # BentoML says so itself
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except PermissionError:
        raise BentoMLConfigException(f"port {port} is for root alone: choose one from 1024 on with --port") from None
    except OverflowError:
        raise BentoMLConfigException(f"{port} is no port: choose one from 1 to 65535 with --port") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is taken: stop the program that listens there, or choose another port with --port"
            raise BentoMLConfigException(message) from None
        raise BentoMLConfigException(
            f"{host} is no address of this machine ({error.strerror}): choose another with --host"
        ) from None


def check_disk(processes: int) -> None:
    """Check that the metrics of so many worker processes find room; BentoMLConfigException stops the start with one line."""
    if sys.platform != "linux":
        return
    size = processes * _METRICS_BYTES_A_PROCESS
    try:
        folder = Path(BentoMLContainer.prometheus_multiproc_dir.get())
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _FULL:
            return  # where BENTOML_HOME cannot be written, BentoML has taken a temporary folder instead
        message = f"the disk is full: no room for {size >> 20} MB of metrics under BENTOML_HOME; make some, or move BENTOML_HOME"
        raise BentoMLConfigException(message) from None
