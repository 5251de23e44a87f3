"""Nothing is asked of a network for a local mistake: wrong paths at every entry point, connections written down."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.azure.declare import COMPONENTS
from finetune.core.paths import looks_local
from finetune.data.arrow import read_hub
from finetune.params.components import TASKS
from finetune.params.schema import LOCAL_OR_HUB, params_of
from tests.broken_models import build_unmerged
from tests.conftest import ROOT
from tests.test_offline import BLOCK

MODULES = {c.name: c.module for c in COMPONENTS}
# Runs [module, words] one after the other, and prints of each: the class of its error, the error, and what it imported.
CODE = """
import importlib, json, sys
from finetune.core.errors import FinetuneError
for module, words in json.load(open(sys.argv[1])):
    said = ["", ""]
    try:
        importlib.import_module(module).main(words)
    except (FinetuneError, SystemExit) as error:
        said = [type(error).__name__, str(error)]
    print("RESULT" + json.dumps([*said, "torch" in sys.modules]), flush=True)
"""


@pytest.fixture(scope="module")
def unmerged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_unmerged(tiny_model, tmp_path_factory.mktemp("unmerged") / "model")


def outcomes(folder: Path, calls: list[tuple[str, list[str]]]) -> list[tuple[str, str, bool]]:
    """What becomes of each call, in a process in which any connection is written down; none may be."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(BLOCK)
    (folder / "calls.json").write_text(json.dumps(calls))
    path = os.pathsep.join([str(folder / "site"), str(ROOT / "src")])
    env = {**os.environ, "PYTHONPATH": path, "CALLS_OUT": str(folder / "connections"), "HF_TOKEN": "hf_secret"}
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        env.pop(name, None)
    words = [sys.executable, "-c", CODE, str(folder / "calls.json")]
    done = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert not (folder / "connections").exists(), (folder / "connections").read_text()
    found = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(found) == len(calls), done.stderr
    return [tuple(one) for one in found]


def inputs_of(task: str, component: str) -> list[Any]:
    known = params_of(vars(TASKS[task])[component])
    return [p for p in known if (p.is_port and not p.output) or p.name in LOCAL_OR_HUB]


def words_for(task: str, component: str, name: str, value: str) -> list[str]:
    """The command line of a component in which one input is wrong, and every other one that it needs is there."""
    given = {p.name: f"new-{p.name}" for p in params_of(vars(TASKS[task])[component]) if p.output}
    given |= {p.name: "there" for p in params_of(vars(TASKS[task])[component]) if p.required and not p.output}
    needed = {
        "model_import": {"pytorch_model_path": "there"},
        "datapreprocess": {"train_file_path": "there.csv"},
        "evaluation": {"test_data": "there.csv", "pytorch_model_folder": "there"},
        "finetune": {"apply_deepspeed": "false"},
    }[component]
    others = {"preprocess_output": "test_data"}
    others |= dict.fromkeys(("mlflow_model_folder", "openvino_model_folder"), "pytorch_model_folder")
    if component == "evaluation":
        needed.pop(others.get(name, ""), None)
    given |= {**needed, name: value}
    return ["--task", task, *(word for key, text in given.items() for word in (f"--{key}", text))]


@pytest.mark.parametrize("task", TASKS)
def test_wrong_paths_at_every_input(task: str, tmp_path: Path) -> None:
    """Each is refused with the near name, before torch is imported: as missing, and as a file for a folder."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there.csv").touch()
    tried = [(c.name, p) for c in COMPONENTS for p in inputs_of(task, c.name)]
    assert len(tried) >= 14
    calls, wanted = [], []
    for component, p in tried:
        file = p.kind == "uri_file"
        wrong, near, other = ("ther.csv", "there.csv", "there") if file else ("./ther", "there", "there.csv")
        for value, said in ((wrong, f"fix: --{p.name} {near}"), (other, f"not a {'file' if file else 'folder'}")):
            calls.append((MODULES[component], words_for(task, component, p.name, value)))
            wanted.append((f"--{p.name} {Path(value) if p.is_port else value} is ", said))
    for (kind, text, torch), (what, said) in zip(outcomes(tmp_path, calls), wanted, strict=True):
        assert kind == "ParameterError" and what in text and said in text, (what, text)
        assert not torch, what


def test_wrong_paths_of_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    pipeline = str(ROOT / "components" / "question_answering" / "pipeline.yaml")
    values = [
        "train_file_path=trian.csv",
        "pytorch_model_path=modle",
        "dataset_name=./dta",
        "mlflow_model_path=train.csv",
    ]
    words = [pipeline, "--output", "out", "--set", *values]
    for kind, text, torch in outcomes(tmp_path, [("finetune.check", words), ("finetune.pipeline", words)]):
        assert kind == "ParameterError" and not torch
        assert all(f"--set {value} is " in text for value in values) and "fix: --set train_file_path=train.csv" in text


def test_folders_that_lack_something(tiny_model: Path, prepared: Path, unmerged: Path, tmp_path: Path) -> None:
    """They are there, and what is missing in them is not looked for elsewhere."""
    handed = shutil.copytree(prepared, tmp_path / "handed")
    shutil.rmtree(handed / "model" / "model")
    adapter = shutil.copytree(unmerged, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    alone = shutil.copytree(adapter, tmp_path / "alone")
    shutil.rmtree(alone / "base_model")
    wordless = shutil.copytree(tiny_model, tmp_path / "org" / "model")
    (wordless / "tokenizer.json").unlink()
    data = tmp_path / "rows"
    data.mkdir()
    path = "https://example.invalid/train.jsonl"
    card = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": path}]}]}
    (data / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    (tmp_path / "empty").mkdir()
    task, tags = ["--task", "question_answering"], ["--task", "token_classification"]
    file, model = str(handed / "train.jsonl"), str(prepared / "model")
    test = ["--test_data", file, "--evaluation_result", "result"]
    handover = ["--model_selector_output", str(handed / "model")]
    both = ["--pytorch_model_folder", "p", "--mlflow_model_folder", "m"]
    calls = [
        ("finetune.preprocess", [*task, "--train_file_path", file, *handover, "--output_dir", "out"]),
        ("finetune.run", [*task, "--preprocess_output", str(handed / "data"), *handover, *both]),
        (
            "finetune.preprocess",
            [*task, "--dataset_name", "rows", "--model_selector_output", model, "--output_dir", "o"],
        ),
    ]
    for folder in ("empty", "org/model", "adapter", "alone"):
        calls.append(("finetune.evaluation", [*tags, "--pytorch_model_folder", folder, *test]))
        for name in ("pytorch_model_path", "huggingface_id", "mlflow_model_path"):
            calls.append(("finetune.model_selector", [*tags, f"--{name}", folder, "--output_dir", "out"]))
    calls.append(("finetune.evaluation", [*tags, "--mlflow_model_folder", "empty", *test]))
    found = outcomes(tmp_path, calls)
    assert [kind for kind, *_ in found[:3]] == ["ModelError", "ModelError", "DataError"] and path in found[2][1]
    assert {kind for kind, *_ in found[3:]} == {"ModelError"}, found


def test_a_row_that_names_a_picture_elsewhere(tmp_path: Path) -> None:
    """A column of pictures or sounds is left as it is stored: to look at one would be to fetch it."""
    feature = {"name": "picture", "dtype": "image"}
    card = {"dataset_info": {"features": [{"name": "question", "dtype": "string"}, feature]}}
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    row = {"question": "Who?", "picture": "https://example.invalid/x.png"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert read_hub(str(tmp_path), None)["train"].rows[0]["question"] == "Who?"


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("squad", False), ("nyu-mll/glue", False), ("bert-base-uncased", False), ("org/model.v2", False),
        ("./squad", True), ("/data/squad", True), ("~/squad", True), ("a/b/c", True), ("rows.jsonl", True),
        ("data\\squad", True), ("C:/data", True), ("here/squad", True), ("squad/", True), ("https://x.y/z", False),
    ],
)  # fmt: skip
def test_names_that_are_paths(name: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert looks_local(name) == local
