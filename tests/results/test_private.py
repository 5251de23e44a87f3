"""What a run leaves to be published says nothing of who made it, on which machine and where; and it loads as before."""

import getpass
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetune import evaluation, model_selector, run
from finetune.data.folders import SelectedModel, Trained
from finetune.models.stored.places import leave_out_places
from tests.conftest import ROOT, finetune_words, prepare

FOLDER, USER, HOST = "zebrafish-folder", "okapi-user", "quokka-host"
LOGS = {"resolved_config.yaml", "mlflow.db"}
TASKS = ("question_answering", "token_classification")
KINDS = {
    "plain": {},
    "merged": {"apply_lora": "true"},
    "unmerged": {"apply_lora": "true", "merge_lora_weights": "false"},
}


MADE = [f"question_answering {kind}" for kind in KINDS]
MADE += [pytest.param(f"token_classification {kind}", marks=pytest.mark.thorough) for kind in KINDS]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of a user on a machine, both with names of their own; its configs were written by older libraries."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, USER)
        patch.setenv("HOSTNAME", HOST)
        patch.setattr(socket, "gethostname", lambda: HOST)
        patch.setattr(getpass, "getuser", lambda: USER)
        folder = tmp_path_factory.mktemp(FOLDER)
        (folder / "uv.lock").write_text(USER)
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{USER}"\nversion = "1"\n')
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        yield folder


@pytest.fixture(scope="module")
def base(home: Path, tiny_model: Path) -> Path:
    folder = home / "base"
    shutil.copytree(tiny_model, folder)
    for name, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        values = json.loads((folder / name).read_text())
        values |= {
            key: f"/home/{USER}/base",
            "special_tokens_map_file": f"/home/{USER}/map.json",
            "dataset_path": "/home",
        }
        (folder / name).write_text(json.dumps({**values, "nested": {"cache_dir": rf"C:\Users\{USER}"}}))
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt", "made_by": USER})
    return folder


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest, home: Path, base: Path) -> Path:
    """The outputs of finetuning and evaluation: pytorch/, mlflow/ and evaluation/."""
    task, kind = request.param.split()
    prepared, output = home / f"{task}_data", home / f"{task}_{kind}"
    if not prepared.exists():
        prepared.mkdir()
        prepare(prepared, base, task, (24, 8, 8))
    given = {"max_steps": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 8, **KINDS[kind]}
    run.main(finetune_words(prepared, output, **given))
    words = ["--task", task, "--preprocess_output", str(prepared / "data")]
    words += ["--mlflow_model_folder", str(output / "mlflow"), "--evaluation_result", str(output / "evaluation")]
    evaluation.main(words)
    return output


def task_of(output: Path) -> str:
    return next(task for task in TASKS if output.name.startswith(task))


@pytest.mark.slow
def test_nothing_published_names_a_person_a_machine_or_a_place(made: Path) -> None:
    files = [path for path in made.rglob("*") if path.is_file() and path.name not in LOGS]
    assert {"README.md", "MLmodel", "training.json", "report.html", "trainer_state.json"} <= {
        path.name for path in files
    }
    words = [FOLDER, USER, HOST, str(ROOT), str(made.parents[2]), f"{tempfile.gettempdir()}{os.sep}"]
    found = {(path.relative_to(made), word) for path in files for word in words if word.encode() in path.read_bytes()}
    assert not found
    assert not [path for path in files if path.suffix == ".pyc" or path.name in ("uv.lock", "pyproject.toml")]


@pytest.mark.slow
def test_it_can_be_imported_again(made: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(shutil.copytree(made / "pytorch", tmp_path / "made"), tmp_path / "moved"))
    task = task_of(made)
    model_selector.main(["--task", task, "--pytorch_model_path", str(moved), "--output_dir", str(tmp_path / "import")])
    assert SelectedModel.read(tmp_path / "import", task).new_weights == ()
    trained = Trained.read(moved, task)
    assert trained is not None and (trained.base_model, trained.hub_id) == ("base", None)
    for path in moved.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_a_model_given_by_where_it_lies_has_the_name_of_its_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(tiny_model, folder)
    monkeypatch.chdir(folder)
    for parameter in ("--pytorch_model_path", "--huggingface_id"):
        model_selector.main(["--task", TASKS[0], parameter, ".", "--output_dir", str(tmp_path / "out")])
        selected = SelectedModel.read(tmp_path / "out", TASKS[0])
        assert selected.hub_id is None and Path(selected.source_name).name == "here"


def test_configs_keep_all_but_absolute_paths(tmp_path: Path) -> None:
    kept = {"name_or_path": "some-one/bert", "pad_token": "/", "id2label": {"0": "/home"}, "layers": [1, {"a": None}]}
    text = json.dumps(kept)
    for name, values in (("config.json", {**kept, "_name_or_path": "/home/x"}), ("adapter_config.json", kept)):
        (tmp_path / name).write_text(json.dumps(values))
    leave_out_places(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == kept
    assert (tmp_path / "adapter_config.json").read_text() == text
