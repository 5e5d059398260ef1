"""API keys: what opens, what does not, and a file that changes while the server runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from pathlib import Path

import pytest

from bento_service.access import ApiKeys
from bento_service.errors import SettingsError

KEY, OTHER = "planted-key-1", "planted-key-2"


class Clock:
    """Time that goes on when told."""

    now = 100.0

    def __call__(self) -> float:
        """Read it."""
        return self.now


class KeyFile:
    """A file of keys, rewritten as editors and Kubernetes do."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder / "keys"
        self.clock = Clock()
        self.write(text)

    def write(self, text: str) -> None:
        """Replace the file."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def opens(self, keys: ApiKeys, key: str, seconds: float = 1.0) -> bool:
        """Let time pass and knock."""
        self.clock.now += seconds
        return keys.owner([key.encode()]) is not None


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    """Make a file with one key."""
    return KeyFile(tmp_path, f"# ours\n\n  {KEY}  # the first\n")


@pytest.mark.parametrize("value", [KEY, f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} ", f" {KEY} "])
def test_a_key_opens_bare_and_as_bearer(value: str) -> None:
    """However the scheme is spelt."""
    assert ApiKeys([OTHER, KEY]).owner([value.encode()]) == hashlib.sha256(KEY.encode()).hexdigest()


@pytest.mark.parametrize(
    "value", ["", " ", "Bearer", "Bearer ", KEY[:-1], KEY + "x", KEY.upper(), f"Basic {KEY}", f"Bearer{KEY}", f"Bearer x {KEY}"]
)
def test_anything_else_does_not(value: str) -> None:
    """Beginnings and other cases of a key included."""
    assert ApiKeys([KEY]).owner([value.encode()]) is None


def test_one_right_value_among_several_opens() -> None:
    """A gateway may use Authorization for itself."""
    assert ApiKeys([KEY]).owner([b"Basic eDp5", b"\xff\xfe", KEY.encode()]) is not None
    assert ApiKeys([KEY]).owner([]) is None


def test_keys_are_compared_as_digests_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time: neither the first letters nor the place of a key show in the time taken."""
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    keys = ApiKeys([f"key-{number}" for number in range(7)])
    for value in (b"key-0", b"key-6", b"k", b"x" * 5000):
        compared.clear()
        keys.owner([value])
        assert compared == [(32, 32)] * 7


def test_without_keys_none_is_required() -> None:
    """The default."""
    assert not ApiKeys().required
    assert ApiKeys([KEY]).required
    assert ApiKeys(path=Path("nowhere")).required


def test_keys_of_the_file_and_of_the_environment_both_open(file: KeyFile) -> None:
    """Comments and blank lines are none."""
    keys = ApiKeys([OTHER], file.path, clock=file.clock)
    keys.check()
    assert file.opens(keys, KEY)
    assert file.opens(keys, OTHER)
    for none in ("# ours", "ours", "the first", f"{KEY}  # the first"):
        assert not file.opens(keys, none)


def test_a_changed_file_is_read_within_a_second_and_not_more_often(file: KeyFile) -> None:
    """Old keys end, new ones begin."""
    keys = ApiKeys(path=file.path, clock=file.clock)
    assert file.opens(keys, KEY)
    file.write(OTHER)
    assert not file.opens(keys, OTHER, seconds=0.5)
    assert file.opens(keys, OTHER, seconds=0.5)
    assert not file.opens(keys, KEY)


@pytest.mark.parametrize("harm", ["gone", "empty", "comments", "not text", "a folder"])
def test_a_file_that_goes_bad_changes_nothing_and_is_told_once(
    file: KeyFile, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it is good again; the line names no key and no path."""
    keys = ApiKeys(path=file.path, clock=file.clock)
    assert file.opens(keys, KEY)
    file.path.unlink()
    if harm == "a folder":
        file.path.mkdir()
    elif harm != "gone":
        file.path.write_bytes({"empty": b"", "comments": b"# none\n", "not text": b"\xff\xfe"}[harm])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert file.opens(keys, KEY)
    assert len(caplog.records) == 1
    assert "planted" not in caplog.text
    assert str(file.path) not in caplog.text
    if harm == "a folder":
        file.path.rmdir()
    file.write(OTHER)
    assert file.opens(keys, OTHER)
    assert not file.opens(keys, KEY)


def test_a_worker_that_starts_without_the_file_lets_nobody_in_until_it_is_there(tmp_path: Path) -> None:
    """The start has checked it, so it went missing since: closed is the safe side."""
    file = KeyFile(tmp_path, KEY)
    file.path.unlink()
    keys = ApiKeys(path=file.path, clock=file.clock)
    assert not file.opens(keys, KEY)
    file.write(KEY)
    assert file.opens(keys, KEY)


@pytest.mark.parametrize("text", [None, "", "# none\n\n"], ids=["missing", "empty", "comments"])
def test_the_start_is_stopped_by_a_file_without_a_key(tmp_path: Path, text: str | None) -> None:
    """One line that names the variable."""
    path = tmp_path / "planted-path"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=r"^RERANKER_API_KEYS_FILE: the file") as failure:
        ApiKeys(path=path).check()
    assert "planted" not in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_change_that_keeps_size_and_second_is_seen(file: KeyFile) -> None:
    """By the nanoseconds and the inode."""
    keys = ApiKeys(path=file.path, clock=file.clock)
    file.write("first-key")
    assert file.opens(keys, "first-key")
    before = os.stat(file.path)  # noqa: PTH116  as the service does
    file.write("other-key")
    os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.opens(keys, "other-key")
