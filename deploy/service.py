"""Starts, stops and watches the service in the background: `make start`, `stop`, `restart`, `status`.

Exit codes are those of LSB init scripts: 0 done, or it runs; 1 failed, or its process is gone and the pid file is not; 3 it does not run.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from background import REPOSITORY, Background, wait_for

DONE, FAILED, NOT_RUNNING = 0, 1, 3
_SHOWN_LINES = 10
_KILL_SECONDS = 10.0
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def start(server: Background, wait_seconds: float) -> int:
    """Start it and wait until it is ready; what the log says where it never is."""
    if running := server.process():
        print(f"runs already: pid {running.pid}, port {server.port}")
        return DONE
    if server.pid_path.exists():
        print(
            f"the pid file named {server.pid_path.read_text(encoding='ascii', errors='replace').strip() or 'nobody'}, which is not this server any more"
        )
        server.forget()
    _end_left_over(server)
    process = server.launch()
    try:
        wait_for(lambda: process.poll() is not None or server.ready(), wait_seconds)
    except KeyboardInterrupt:
        stop(server, None)
        return FAILED
    if process.poll() is None and server.ready():
        print(f"ready: pid {process.pid}, port {server.port}, log {_short(server.log_path)}")
        return DONE
    why = f"it was not ready within {wait_seconds:g} s" if process.poll() is None else f"it ended with code {process.poll()}"
    print(f"error: {why}; its log says:\n{server.why(_SHOWN_LINES)}", file=sys.stderr)
    if process.poll() is None:
        stop(server, _KILL_SECONDS)
    server.forget()
    return FAILED


def stop(server: Background, wait_seconds: float | None) -> int:
    """SIGTERM, so that it answers what it has taken; SIGKILL to what has not ended in time, by default a little after it said it would."""
    process = server.process()
    if process is None:
        print(f"does not run on port {server.port}")
    else:
        wait_seconds = wait_seconds or server.shutdown_seconds() + _KILL_SECONDS
        try:
            process.terminate()
        except psutil.AccessDenied:
            print(f"error: pid {process.pid} is another user's, who must stop it", file=sys.stderr)
            return FAILED
        if wait_for(lambda: server.process() is None, wait_seconds):
            print(f"stopped: pid {process.pid}")
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
            wait_for(lambda: server.process() is None, _KILL_SECONDS)
            print(f"pid {process.pid} did not end within {wait_seconds:g} s of SIGTERM, and was killed", file=sys.stderr)
    _end_left_over(server)
    server.forget()
    return DONE


def _end_left_over(server: Background) -> None:
    """Kill the workers of a server that was killed itself."""
    left = server.left_over()
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_KILL_SECONDS)
    if left:
        print(f"killed {len(left)} worker processes that had outlived their server", file=sys.stderr)


def status(server: Background) -> int:
    """Print whether it runs, and what it says of itself."""
    process = server.process()
    if process is None:
        stale = server.pid_path.exists()
        print(
            f"does not run on port {server.port}"
            + (f": {_short(server.pid_path)} is left from one that is gone" if stale else "")
        )
        return FAILED if stale else NOT_RUNNING
    told = server.health()
    model, requests = told.get("model", {}), told.get("requests", {})
    lines = {
        "pid": f"{process.pid}, {'ready' if server.ready() else 'not ready'}",
        "uptime": _spell(time.time() - process.create_time()),
        "port": server.port,
        "model": model.get("tag", "unknown: /health does not answer, or wants a key"),
        "precision": f"{model.get('quantization')} on {model.get('device')}, {model.get('quantization_asked')} was asked for",
        "queue": f"{requests.get('waiting')} requests wait, {requests.get('active')} are being scored",
        "log": _short(server.log_path),
    }
    for name in ("precision", "queue"):
        if not told:
            del lines[name]
    print("\n".join(f"{name:<10}{value}" for name, value in lines.items()))
    return DONE


def _spell(seconds: float) -> str:
    days, hours, minutes = int(seconds // _DAY), int(seconds % _DAY // _HOUR), int(seconds % _HOUR // _MINUTE)
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    return " ".join(f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if count)


def _short(path: Path) -> str:
    return os.path.relpath(path, REPOSITORY) if path.is_relative_to(REPOSITORY) else str(path)


@contextlib.contextmanager
def _alone(folder: Path, port: int) -> Iterator[None]:
    """Let one start or stop of a port run at a time."""
    place = folder / str(port)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"error: another start or stop of port {port} is under way") from None
        yield


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("start", "stop", "restart", "status"))
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / ".run", help="where pid files, logs and BENTOML_HOMEs lie")
    parser.add_argument("--start-seconds", type=float, default=300.0, help="until it must be ready")
    parser.add_argument(
        "--stop-seconds", type=float, help="from SIGTERM to SIGKILL; default: the server's RERANKER_SHUTDOWN_SECONDS + 10"
    )
    options = parser.parse_args()
    server = Background(options.folder, options.port)
    if options.action == "status":
        return status(server)
    with _alone(options.folder, options.port):
        if options.action == "start":
            return start(server, options.start_seconds)
        stopped = stop(server, options.stop_seconds)
        return stopped if options.action == "stop" or stopped != DONE else start(server, options.start_seconds)


if __name__ == "__main__":
    sys.exit(main())
