"""finetune submit: what is said and refused before anything is sent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.azure.service import connection
from finetune.core.errors import ParameterError
from finetune.submit import main
from tests.conftest import ROOT, SAMPLES

FILE = str(ROOT / "components" / "token_classification" / "pipeline.yaml")
TRAIN = str(SAMPLES / "token_classification" / "train.jsonl")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "connect", lambda place: pytest.fail("connected"))


def faults(*words: str) -> list[str]:
    with pytest.raises(ParameterError) as caught:
        main(list(words))
    return [fault.what for fault in caught.value.faults]


def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    main([FILE, "--set", f"train_file_path={TRAIN}", "num_train_epochs=2", "--compute", "gpu", "--dry-run"])
    steps = [f"  compute_{step}: gpu\n" for step in ("model_import", "preprocess", "finetune", "model_evaluation")]
    given = f"  train_file_path: {TRAIN}\n  num_train_epochs: 2\n"
    assert capsys.readouterr().out == f"[submit]\n{FILE} on gpu, with\n{''.join(steps)}{given}"


def test_wrong_words_are_all_said() -> None:
    assert faults("--no-wait", "--download", "out", "--experimnt", "--workspace", "w", "--compute") == [
        "unknown option --experimnt; did you mean --experiment?",
        "--compute has no value",
        "--subscription is missing",
        "--resource-group is missing",
        "no pipeline file is given",
        "--no-wait and --download are both given",
    ]
    assert faults(FILE, "another") == ["unexpected word 'another'"]


def test_the_words_of_the_pipeline_are_refused_as_by_finetune_pipeline() -> None:
    assert faults(FILE, "--set", "precison=bf16", "precision=fp8") == [
        "the pipeline has no input 'precison'; did you mean precision?",
        "--set precision=fp8 must be one of 32, 16, bf16",
    ]
    assert faults("nowhere.yaml") == ["nowhere.yaml is missing"]


def test_a_folder_with_something_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "mlflow_model_folder").mkdir()
    (tmp_path / "mlflow_model_folder" / "mine.txt").touch()
    (what,) = faults(FILE, "--download", str(tmp_path))
    assert what == f"--download {tmp_path} holds what this program did not write: mlflow_model_folder/mine.txt"


@pytest.mark.parametrize(("words", "code"), [((), 0), (("--download", "out"), 2)])
def test_a_working_folder_that_was_removed(words: tuple[str, ...], code: int, tmp_path: Path) -> None:
    gone = ["bash", "-c", 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"', str(tmp_path / "gone")]
    command = [*gone, sys.executable, "-m", "finetune", "submit", FILE, "--dry-run", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    said = "parameter error: out begins at the working folder, which has been removed"
    assert done.stderr.startswith(said) if words else done.stderr == ""
