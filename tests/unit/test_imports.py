"""The import rule of the design: one way only, and each heavy library in one room."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import bento_service

PACKAGE = Path(bento_service.__file__).parent
ROOMS = {
    ".".join(("bento_service", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {room: ast.parse(path.read_text(encoding="utf-8"), str(path)) for room, path in ROOMS.items()}
# Where a library may be imported; everything below a name counts as the name.
ALLOWED = {
    "bentoml": "bento_service.service",
    "_bentoml_sdk": "bento_service.service",
    "_bentoml_impl": "bento_service.service",
    "torch": "bento_service.scorer",
    "transformers": "bento_service.scorer",
    "redis": "bento_service.cache",
}


def _imports(tree: ast.AST) -> set[str]:
    """Every module that a file names in an import, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(f"{'.' * node.level}{node.module or ''}")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def _own_imports(room: str) -> set[str]:
    """Find the rooms that a room imports; a package counts for what is in it."""
    return {name for name in _imports(TREES[room]) if name in ROOMS} - {room, "bento_service"}


def _is_below(name: str, top: str) -> bool:
    return name == top or name.startswith(f"{top}.")


OUTSIDE = sorted(room for room in ROOMS if not _is_below(room, "bento_service.service"))


def test_all_rooms_are_looked_at() -> None:
    """A rule over nothing would always hold."""
    assert {"bento_service.service", "bento_service.pipeline", "bento_service.scorer.engine"} <= set(ROOMS)
    assert "bento_service.admission" in _own_imports("bento_service.pipeline")


@pytest.mark.parametrize("library", sorted(ALLOWED))
def test_a_library_is_imported_in_its_room_alone(library: str) -> None:
    """Foreign errors are translated there, and nowhere else is the library known."""
    for room, tree in TREES.items():
        if any(_is_below(name, library) for name in _imports(tree)):
            assert _is_below(room, ALLOWED[library]), f"{room} imports {library}"


@pytest.mark.parametrize("library", ["bentoml", "torch", "transformers", "redis"])
def test_the_rule_sees_imports_that_are_there(library: str) -> None:
    """Each of these is imported somewhere."""
    assert any(_is_below(name, library) for tree in TREES.values() for name in _imports(tree))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_are_absolute(room: str) -> None:
    """A relative import would slip through the rules above."""
    assert not any(name.startswith(".") for name in _imports(TREES[room]))


def test_imports_run_in_no_circle() -> None:
    """Raises CycleError with the circle if there is one."""
    order = list(graphlib.TopologicalSorter({room: _own_imports(room) for room in ROOMS}).static_order())
    assert set(order) == set(ROOMS)


@pytest.mark.parametrize("room", OUTSIDE)
def test_no_room_imports_the_wiring(room: str) -> None:
    """The service knows the rooms, no room knows the service."""
    assert not any(_is_below(name, "bento_service.service") for name in _own_imports(room))


@pytest.mark.parametrize("room", sorted(room for room in ROOMS if not _is_below(room, "bento_service.scorer")))
def test_the_entry_imports_no_room_of_the_scorer(room: str) -> None:
    """The scorer's rooms hold torch, ten entry workers must not."""
    assert not any(_is_below(name, "bento_service.scorer") for name in _imports(TREES[room]))


@pytest.mark.parametrize(
    "room",
    [
        "bento_service.errors",
        "bento_service.pairs",
        "bento_service.tally",
        "bento_service.redis_url",
        "bento_service.scorer.batching",
    ],
)
def test_the_rooms_at_the_bottom_import_no_other(room: str) -> None:
    """Everything may stand on them."""
    assert not _own_imports(room)


def _reads_environment(tree: ast.AST) -> bool:
    """Find os.environ, os.getenv and their relatives under whatever name."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
        for node in ast.walk(tree)
    )


def test_only_the_settings_read_the_environment() -> None:
    """One place to look for what can be set."""
    assert [room for room, tree in TREES.items() if _reads_environment(tree)] == ["bento_service.settings"]


def test_the_entry_s_rooms_load_neither_torch_nor_bentoml() -> None:
    """In a fresh process, whatever their libraries import in turn."""
    rooms = [room for room in OUTSIDE if not _is_below(room, "bento_service.scorer")]
    script = (
        "import importlib, sys\n"
        f"for room in {rooms!r}: importlib.import_module(room)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert {"bento_service", "tokenizers"} <= loaded
    assert not loaded & {"torch", "transformers", "bentoml", "_bentoml_sdk"}
