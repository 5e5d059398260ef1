"""Containers of the image that is tested: in Docker, in Podman, or with buildah where no engine runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

from servers import free_port

SERVE = "serve"
_ENTRYPOINT = "/home/bentoml/bento/env/docker/entrypoint.sh"
_WORKER = "_bentoml_impl.worker.service"
_SIGNAL_SCORER = f"""
import sys, psutil
for process in psutil.process_iter():
    words = process.cmdline()
    if "{_WORKER}" in words and words[words.index("--service-name") + 1] == "Scorer":
        process.send_signal(int(sys.argv[1]))
"""


def eventually(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)


def output(*command: str) -> str:
    """Run a program; its output, and its errors in the exception."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout.strip()


def find_engine() -> str:
    """Return docker, podman or buildah: ENGINE, or Docker where its engine answers, or else buildah; end the run if there is none."""
    engine = os.environ.get("ENGINE", "")
    if not engine:
        docker = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
        engine = "docker" if docker else "buildah"
    if not shutil.which(engine):
        pytest.exit(
            f"error: no Docker engine answers, and {engine} is not installed: start Docker, or (Debian) apt-get install buildah",
            returncode=1,
        )
    if engine == "buildah" and os.geteuid() != 0:
        pytest.exit(
            "error: without an engine a container of the image needs root: run make test-image as root, or start Docker",
            returncode=1,
        )
    return engine


class Container(ABC):
    """One container that serves on a port of this machine. restart: the policy, on-failure or unless-stopped."""

    def __init__(self, image: str, *, restart: str, **settings: object) -> None:
        self.image, self.restart = image, restart
        self.port = free_port()
        # The image's own BENTOML_HOME is a folder beside the Bento.
        self.settings = {"BENTOML_HOME": "/tmp/bentoml"} | {name: str(value) for name, value in settings.items()}  # noqa: S108  the container's
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        began = time.monotonic()
        self.start()
        self.wait_ready()
        self.start_seconds = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def status(self, path: str) -> int:
        """GET a path: its status, 0 where nobody answers."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=2).status_code
        except httpx.TransportError:
            return 0

    def get(self, path: str) -> Any:
        """GET a path: its JSON."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10).json()

    def rerank(self, **body: Any) -> Any:
        """POST to /rerank: its JSON."""
        return httpx.post(f"http://127.0.0.1:{self.port}/rerank", json=body, timeout=30).raise_for_status().json()

    def wait_ready(self, timeout: float = 180.0) -> None:
        """Wait for /readyz; the log is in the error when it never comes."""
        try:
            eventually(lambda: self.status("/readyz") == httpx.codes.OK, timeout, "/readyz")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    @abstractmethod
    def start(self) -> None:
        """Start it; it is not ready then."""

    @abstractmethod
    def run_inside(self, *command: str) -> str:
        """Run a program in it as its user; what it prints."""

    @abstractmethod
    def signal_scorer(self, number: signal.Signals) -> None:
        """Send a signal to its model worker."""

    @abstractmethod
    def first_process(self) -> int:
        """Return the number that the server's first process has for programs inside."""

    @abstractmethod
    def restarted(self) -> bool:
        """Tell whether it ended, with a failure unless the policy is unless-stopped, and was started again."""

    @abstractmethod
    def stop(self) -> int:
        """SIGTERM, as a deployment sends it; the exit code."""

    @abstractmethod
    def written(self) -> list[str]:
        """Paths outside /tmp that were written to."""

    @abstractmethod
    def log(self) -> str:
        """What it has printed."""

    @abstractmethod
    def remove(self) -> None:
        """Leave nothing of it."""


class EngineContainer(Container):
    """A container of Docker or Podman: read-only, without capabilities, restarted by its policy."""

    def __init__(self, engine: str, image: str, *, restart: str, **settings: object) -> None:
        super().__init__(image, restart=restart, **settings)
        self._engine = engine
        self._name = f"reranker-test-{self.port}"

    def start(self) -> None:
        """Start it; the engine starts it again as the policy says."""
        given = [word for name, value in self.settings.items() for word in ("--env", f"{name}={value}")]
        # Where containers have no network of their own: IMAGE_NETWORK=host.
        host = os.environ.get("IMAGE_NETWORK") == "host"
        network = ["--network", "host"] if host else ["--publish", f"127.0.0.1:{self.port}:{self.port}"]
        hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]  # noqa: S108  the container's own
        options = ["--detach", "--name", self._name, "--restart", self.restart, *hardened, *network, *given]
        output(self._engine, "run", *options, self.image, SERVE, "--port", str(self.port))

    def run_inside(self, *command: str) -> str:
        """Run a program in it as its user; what it prints."""
        return output(self._engine, "exec", self._name, *command)

    def signal_scorer(self, number: signal.Signals) -> None:
        """Send a signal to its model worker."""
        self.run_inside("python", "-c", _SIGNAL_SCORER, str(int(number)))

    def first_process(self) -> int:
        """A container has process numbers of its own."""
        return 1

    def restarted(self) -> bool:
        """Tell whether the engine has started it again."""
        return int(output(self._engine, "inspect", "--format", "{{.RestartCount}}", self._name)) > 0

    def stop(self) -> int:
        """SIGTERM, as a deployment sends it; the exit code."""
        output(self._engine, "stop", "-t", "60", self._name)
        return int(output(self._engine, "inspect", "--format", "{{.State.ExitCode}}", self._name))

    def written(self) -> list[str]:
        """Nothing can be written: the root file system is read-only."""
        return []

    def log(self) -> str:
        """What it has printed."""
        done = subprocess.run([self._engine, "logs", self._name], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def remove(self) -> None:
        """Leave nothing of it."""
        subprocess.run([self._engine, "rm", "--force", self._name], capture_output=True, check=False)


class BuildahContainer(Container):
    """A container without an engine: a chroot with its own mounts, on the host's network, started again by this test."""

    def __init__(self, image: str, *, restart: str, **settings: object) -> None:
        super().__init__(image, restart=restart, **settings)
        self._id = output("buildah", "from", image)
        self._folder = Path(output("buildah", "mount", self._id))
        self._log_path = Path(f"/var/tmp/reranker-test-{self.port}.log")  # noqa: S108  buildah needs root, and the name is of this run
        self._log = self._log_path.open("wb")
        self._marked = time.time()
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self, *command: str) -> list[str]:
        given = [word for name, value in self.settings.items() for word in ("--env", f"{name}={value}")]
        options = ["--isolation", "chroot", "--network", "host", "--user", "bentoml", *given]
        return ["buildah", "run", *options, self._id, "--", *command]

    def start(self) -> None:
        """Start it."""
        command = self._command(_ENTRYPOINT, SERVE, "--port", str(self.port))
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def _children(self) -> list[tuple[psutil.Process, list[str]]]:
        """Return its own processes with their command lines, none of the machine's others."""
        assert self._process is not None
        found = []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            try:
                found.append((child, child.cmdline()))
            except psutil.NoSuchProcess:
                continue
        return found

    def run_inside(self, *command: str) -> str:
        """Run a program in it as its user; what it prints."""
        return output(*self._command(*command))

    def signal_scorer(self, number: signal.Signals) -> None:
        """Send a signal to its model worker."""
        [scorer] = [
            process
            for process, words in self._children()
            if _WORKER in words and words[words.index("--service-name") + 1] == "Scorer"
        ]
        scorer.send_signal(number)

    def first_process(self) -> int:
        """A chroot has the machine's process numbers."""
        [server] = [process for process, words in self._children() if any(word.endswith("/bentoml") for word in words[:2])]
        return server.pid

    def restarted(self) -> bool:
        """Do as its restart policy does: start it again once it has ended."""
        assert self._process is not None
        if self._process.poll() is None:
            return False
        assert self.restart == "unless-stopped" or self._process.returncode != 0, "it ended as if nothing had failed"
        self.start()
        return True

    def stop(self) -> int:
        """SIGTERM to its first process, as an engine sends it; the exit code."""
        assert self._process is not None
        os.kill(self.first_process(), signal.SIGTERM)
        return self._process.wait(60)

    def written(self) -> list[str]:
        """Files outside /tmp that were written to since it was made; /run is buildah's, and the names of the host stand in /etc."""
        own = ("tmp", "run", "proc", "sys", "dev", "etc")
        roots = [str(path) for path in self._folder.iterdir() if path.name not in own and not path.is_symlink()]
        found = output("find", *roots, "-xdev", "-type", "f", "-newermt", f"@{self._marked}")
        return found.splitlines()

    def log(self) -> str:
        """What it has printed."""
        return self._log_path.read_text(errors="replace")

    def remove(self) -> None:
        """Leave nothing of it."""
        if self._process is not None and self._process.poll() is None:
            children = self._children()
            self._process.kill()
            self._process.wait(10)
            for child, _ in children:
                if child.is_running():
                    child.kill()
        self._log.close()
        self._log_path.unlink(missing_ok=True)
        output("buildah", "rm", self._id)


def image_facts(engine: str, image: str) -> tuple[str, list[str], int]:
    """Return the user, the environment and the bytes of the image; end the run if there is no such image."""
    kind = ["--type", "image"] if engine == "buildah" else []
    verb = ["inspect"] if engine == "buildah" else ["image", "inspect"]
    done = subprocess.run([engine, *verb, *kind, image], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.exit(f"error: {engine} has no image {image}: make containerize first, or say IMAGE=<name>", returncode=1)
    answer = json.loads(done.stdout)
    if engine != "buildah":
        return answer[0]["Config"]["User"], answer[0]["Config"]["Env"], int(answer[0]["Size"])
    folder = Path(output("buildah", "mount", container := output("buildah", "from", image)))
    size = int(output("du", "--summarize", "--block-size=1", "--one-file-system", str(folder)).split()[0])
    output("buildah", "rm", container)
    return answer["OCIv1"]["config"]["User"], answer["OCIv1"]["config"]["Env"], size


def make_container(engine: str, image: str, *, restart: str = "on-failure", **settings: object) -> Container:
    """Make a container that is not started yet."""
    if engine == "buildah":
        return BuildahContainer(image, restart=restart, **settings)
    return EngineContainer(engine, image, restart=restart, **settings)
