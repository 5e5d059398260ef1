"""deploy/systemd: what the units and the service must agree on; systemd's own view is `make test-systemd`."""

from __future__ import annotations

from configparser import RawConfigParser
from pathlib import Path

import pytest

from bento_service.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "systemd"


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    """The [Service] section, the last of each option."""
    parser = RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(FOLDER / "reranker.service")
    return dict(parser["Service"])


def test_systemd_waits_for_longer_than_the_server_takes_to_end(service: dict[str, str]) -> None:
    """Else it would kill what is still being answered."""
    assert int(service["TimeoutStopSec"]) > Settings().shutdown_seconds
    assert (service["KillMode"], service["KillSignal"]) == ("mixed", "SIGTERM")


def test_a_failure_is_started_anew_and_a_stop_is_not(service: dict[str, str]) -> None:
    """on-failure: SIGTERM ends the server with 0."""
    assert service["Restart"] == "on-failure"


def test_no_sign_of_life_is_promised_that_nobody_sends(service: dict[str, str]) -> None:
    """WatchdogSec without sd_notify would restart a healthy server for ever; the timer asks /livez instead."""
    assert "WatchdogSec" not in service
    assert service["Type"] == "exec"
    assert "/livez" in (FOLDER / "reranker-check.service").read_text()


def test_zeromq_finds_what_it_cannot_do_without(service: dict[str, str]) -> None:
    """Without either, the server aborts under this unit (seen under a real systemd)."""
    assert "AF_NETLINK" in service["RestrictAddressFamilies"]
    assert "@resources" not in service["SystemCallFilter"]
