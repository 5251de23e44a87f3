"""The model card and training.json: written by a run, true, and with snippets that work as they stand."""

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from finetune import run
from finetune.core.errors import HandoffError
from finetune.data.folders import Preprocessed, Trained
from finetune.results import card
from finetune.tasks import load_task
from tests.conftest import finetune_words
from tests.forking import Forks
from tests.results.test_report import TRAINED

TASK = "question_answering"
MLFLOW_WEIGHTS = Path("mlflow", "artifacts", "model")


def finetuned(prepared: Path, output: Path, **parameters: object) -> Path:
    quick = {"per_device_train_batch_size": 16, "max_steps": 2, "learning_rate": 1e-3}
    run.main(finetune_words(prepared, output, **{**quick, **parameters}))
    return output


@pytest.fixture(scope="module")
def plain(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetuned(prepared, tmp_path_factory.mktemp("plain"), logging_strategy="steps", logging_steps=1)


@pytest.fixture(scope="module")
def unmerged(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = {"apply_lora": "true", "merge_lora_weights": "false"}
    return finetuned(prepared, tmp_path_factory.mktemp("unmerged"), **words)


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def execute(forks: Forks, code: str, output: Path) -> str:
    """What the snippet prints, in a process of its own beside the two model folders."""
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    for port, folder in (("pytorch_model_folder", "pytorch"), ("mlflow_model_folder", "mlflow")):
        if not (output / port).exists():
            (output / port).symlink_to(output / folder)
    ran = subprocess.run([forks.python, "-c", code], cwd=output, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("made", ["plain", "unmerged"])
def test_snippets_work(forks: Forks, made: str, request: pytest.FixtureRequest) -> None:
    output = request.getfixturevalue(made)
    transformers, mlflow = snippets(output / "pytorch")
    assert ("peft" in transformers) == (made == "unmerged")
    assert execute(forks, transformers + "print(model.training, 'READ')", output).endswith("False READ")
    assert "answer" in execute(forks, mlflow, output)


@pytest.mark.slow
@pytest.mark.parametrize("made", ["plain", "unmerged"])
def test_both_folders_are_documented(made: str, prepared: Path, request: pytest.FixtureRequest) -> None:
    output = request.getfixturevalue(made)
    record = Trained.read(output / "pytorch", TASK)
    assert record is not None and record == Trained.read(output / MLFLOW_WEIGHTS, TASK)
    assert record.splits == Preprocessed.read(prepared / "data", TASK).splits
    newest = max((output / "pytorch").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    assert record.best_step == state["best_global_step"]
    assert [e["eval_loss"] for e in record.log if "eval_loss" in e][-1] == record.validation["loss"]
    assert record.parameters["learning_rate"] == 1e-3 and "seed" not in record.parameters
    assert record.speed["train_samples_per_second"] > 0
    libraries = [ModelCard.load(output / f / "README.md").data.library_name for f in ("pytorch", MLFLOW_WEIGHTS)]
    assert libraries == ["peft" if made == "unmerged" else "transformers", "transformers"]
    for template in ("report.html.j2", "card.md.j2"):
        assert (output / "mlflow" / "code" / "finetune" / "results" / template).is_file()


@pytest.mark.slow
def test_card_of_a_run(plain: Path) -> None:
    record = Trained.read(plain / "pytorch", TASK)
    assert record is not None
    text = (plain / "pytorch" / "README.md").read_text(encoding="utf-8")
    (result,) = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {name: round(record.validation[name], 4) for name in ("exact", "f1")}
    assert f"| f1 | {record.validation['f1']:.4f} |" in text and "| train | 48 | 0 | 48 |" in text
    assert "| learning_rate | 0.001 |" in text and "windows of 128 tokens" in text
    assert str(plain) not in text and "/tmp" not in text


def written(trained: Trained, folder: Path, **state: object) -> ModelCard:
    task = load_task(TASK)
    values = {"max_seq_length": 384, "doc_stride": 128, "pad_to_max_length": False, "n_best_size": 20}
    values |= {"max_answer_length_in_tokens": 30, "no_answer": False}
    card.write(folder, task, task.state(**{**values, **state}), trained, unmerged=False)
    return ModelCard.load(folder / "README.md")


def test_metadata_that_the_hub_reads(tmp_path: Path) -> None:
    hub = written(replace(TRAINED, source="huggingface_id", base_model="some-one/bert-x"), tmp_path)
    assert (hub.data.library_name, hub.data.pipeline_tag) == ("transformers", "question-answering")
    assert hub.data.base_model == "some-one/bert-x" and hub.data.license == "unknown"
    assert {(r.metric_type, r.metric_value) for r in hub.data.eval_results} == {("exact_match", 50.0), ("f1", 61.25)}
    local = written(TRAINED, tmp_path)
    assert local.data.base_model is None and "/somewhere" not in local.content
    assert "- train: dropped 2: no &#60;b&#62;question&#60;/b&#62; (rows 3, 4)" in local.content


def test_limits_name_the_threshold(tmp_path: Path) -> None:
    assert "never says that there is none" in written(TRAINED, tmp_path).text
    assert "by more than -2.5" in written(TRAINED, tmp_path, no_answer=True, null_threshold=-2.5).text


def test_record_round_trip(tmp_path: Path) -> None:
    assert Trained.read(tmp_path, TASK) is None
    TRAINED.write(tmp_path)
    assert Trained.read(tmp_path, TASK) == TRAINED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ('{"version": 0, "task": "question_answering"}', "of another version"),
        ('{"version": 1, "task": "question_answering"}', "is damaged"),
        ('{"version": 1, "task": "question_answering", "splits": {"train": 3}}', "is damaged"),
        ('{"version": 1, "task": "question_answering", "splits": {}, "more": 1}', "is damaged"),
    ],
)
def test_damaged_record(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / Trained.FILE).write_text(text)
    with pytest.raises(HandoffError, match=said):
        Trained.read(tmp_path, TASK)
