"""Every command in a working folder that is read-only, gone, or left clean; and whether all that is printed is ours."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import finetune
from tests.azure_service import steps
from tests.conftest import ROOT, sample_rows, write_jsonl
from tests.forking import Command, Forks

SRC = Path(finetune.__file__).parents[1]
READ_ONLY = Path("/proc/sys")
# What every process runs first. It writes down each text that is printed, and the package that prints it; and makes the
# processor one with AVX-512 bf16, on which bitsandbytes recommends a package when it is imported.
WATCH = """
import json, os, sys
from importlib.machinery import PathFinder

def watch(name):
    stream = getattr(sys, name)
    write = stream.write

    def watched(text):
        frame = sys._getframe(1)
        while (origin := frame.f_globals["__name__"].partition(".")[0]) in BETWEEN and frame.f_back:
            frame = frame.f_back
        with open(os.environ["WRITTEN"], "a") as file:
            file.write(json.dumps([origin, name, text]) + "\\n")
        return write(text)

    stream.write = watched

BETWEEN = ("tqdm", "logging", "warnings", "contextlib", "threading")
watch("stdout")
watch("stderr")

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "bitsandbytes.functional":
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), setattr(module, "has_avx512bf16", lambda: True))
        return spec

sys.meta_path.insert(0, Finder)
"""
OURS = {"finetune", "__main__", "threading"}  # the last is tqdm's own thread
LENGTHS = {"max_seq_length": 128, "doc_stride": 32}
SMALL = {"max_steps": 2, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 16}


def commands(task: str, pipeline: list[str], model: Path, data: Path, out: Path) -> Iterator[list[str]]:
    """The words of every entry point, in the order of a pipeline, with absolute paths; `pipeline` are those of one."""
    given = {"train_file_path": data, "pytorch_model_path": model, **LENGTHS, **SMALL}
    values = ["--set", *(f"{name}={value}" for name, value in given.items())]
    own = str(ROOT / "components" / task / "pipeline.yaml")
    folders = {"pytorch_model_folder": out / "pytorch", "mlflow_model_folder": out / "mlflow"}
    prepared = {"preprocess_output": out / "data", "model_selector_output": out / "model"}
    yield module("model_selector", task, pytorch_model_path=model, output_dir=out / "model")
    source = {"train_file_path": data, "model_selector_output": out / "model"}
    yield module("preprocess", task, **source, output_dir=out / "data", **LENGTHS)
    yield module("run", task, **prepared, **folders, **SMALL)
    result = {"preprocess_output": out / "data", "evaluation_result": out / "result"}
    yield module("evaluation", task, pytorch_model_folder=out / "pytorch", **result)
    yield ["finetune", "pipeline", *(pipeline or [own, *values]), "--output", str(out / "all")]
    if pipeline:  # ours begins with the check, in a process of its own
        yield ["finetune", "check", own, *values]
    yield ["finetune", "declare", "--check"]
    yield ["finetune", "register", "--dry-run"]
    yield ["finetune", "submit", own, "--dry-run", *values]
    yield ["finetune", "deploy", str(out / "mlflow"), "--endpoint", "answers", "--dry-run"]


def module(name: str, task: str, **parameters: object) -> list[str]:
    words = [word for name, value in parameters.items() for word in (f"--{name}", str(value))]
    return [f"finetune.{name}", "--task", task, *words]


def texts_of(written: Path) -> list[tuple[str, str, str]]:
    """All that was printed: the package that did, where to, and the text."""
    return [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []


@pytest.fixture(scope="module")
def watched_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A process that has imported the libraries while it was watched: they have neither printed nor left anything."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("imported")
    (site / "sitecustomize.py").write_text(WATCH)
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    env |= {"PYTHONPATH": f"{site}{os.pathsep}{SRC}", "WRITTEN": str(site / "written")}
    with Forks(folder, env) as forks:
        assert forks.run([]) == [] and texts_of(site / "written") == []
        assert {path.name for path in folder.iterdir()} == {"bin", "socket"}
        yield forks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("question_answering", "read-only"),
        pytest.param("token_classification", "gone", marks=pytest.mark.thorough),
        ("token_classification", "clean"),
        pytest.param("question_answering", "clean", marks=pytest.mark.thorough),
    ],
)
def test_every_command(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path, task: str, kind: str) -> None:
    """All that is printed in the clean folder is watched. Our own pipeline is run there in the thorough tier, otherwise
    one of quick steps: steps have folders of theirs."""
    watched = kind == "clean"
    forks: Forks = request.getfixturevalue("watched_forks" if watched else "forks")
    variables = {name: value for name, value in forks.variables.items() if name != "MLFLOW_TRACKING_URI"}
    data = write_jsonl(tmp_path / "rows.jsonl", sample_rows("train", task)[:48])
    folder = READ_ONLY if kind == "read-only" else tmp_path / kind
    own = kind == "clean" and task == "question_answering"
    quick = [] if own else [str(steps.write_pipeline(tmp_path)), "--set", "text=hello"]
    for number, words in enumerate(commands(task, quick, tiny_model, data, tmp_path / "out")):
        if kind != "read-only" and not folder.exists():
            folder.mkdir()
        before = list(folder.iterdir())
        written, *streams = (tmp_path / f"{name}{number}" for name in ("written", "stdout", "stderr"))
        command = Command(["-m", *words], {**variables, "WRITTEN": str(written)}, str(folder), *map(str, streams))
        (code,) = forks.run([command])
        shown = {path.name.rstrip("0123456789"): path.read_bytes().decode() for path in streams}
        assert code == 0, (words, shown)
        assert "Traceback" not in "".join(shown.values())
        assert (list(folder.iterdir()) if folder.exists() else []) == before, words
        if not watched:
            continue
        texts = texts_of(written)
        assert texts and [text for text in texts if text[0] not in OURS] == [], words
        if "pipeline" not in words:  # it passes on what its steps print
            for name, text in shown.items():
                assert text == "".join(text for _, stream, text in texts if stream == name), words


@pytest.mark.slow
def test_relative_paths_where_the_folder_is_gone(tmp_path: Path) -> None:
    folders = {"preprocess_output": "p", "model_selector_output": tmp_path, "mlflow_model_folder": "m"}
    pipeline = ROOT / "components" / "question_answering" / "pipeline.yaml"
    enter = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    for words, lost in (
        (module("run", "question_answering", **folders, pytorch_model_folder="./o"), ("p", "m", "./o")),
        (["finetune", "pipeline", "here.yaml", "--output", "o"], ("here.yaml", "o")),
        (["finetune", "check", str(pipeline), "--set", "train_file_path=t.csv"], ("t.csv",)),
    ):
        command = ["bash", "-c", enter, str(tmp_path / "gone"), sys.executable, "-m", *words]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == 2, ran.stderr
        named = re.findall(r"(\S+) begins at the working folder, which has been removed; give an absolute", ran.stderr)
        assert tuple(name.strip("'").removeprefix("train_file_path=") for name in named) == lost
