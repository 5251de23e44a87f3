"""What examples/ submits: the same job from YAML and from Python, the model of the local runner, and our errors."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pytest
import yaml

from finetune import pipeline
from tests.azure_service.names import GROUP, SUBSCRIPTION, WORKSPACE
from tests.azure_service.service import Service
from tests.conftest import ROOT, SAMPLES, sample_rows, write_jsonl

pytestmark = [pytest.mark.azure, pytest.mark.slow, pytest.mark.thorough]
TASKS = ("question_answering", "token_classification", "generative_question_answering", "translation")
WRITING = ("generative_question_answering", "translation")
SETTINGS = {
    "max_seq_length": 96,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "precision": "32",
    "number_of_gpu_to_use_finetuning": 2,  # processes: they train on the CPU
}
SPLITS = {"train": 24, "validation": 4, "test": 4}  # rows
OUTPUTS = ("pytorch_model_folder", "evaluation_result")


class Submitted(NamedTuple):
    """The finished job of a task's YAML on a tiny model and few rows, and the folder with its files."""

    task: str
    name: str
    folder: Path


def rows_of(task: str, folder: Path) -> dict[str, Path]:
    """A few rows of each split of the sample, by the inputs that take them."""
    return {
        f"{split}_file_path": write_jsonl(folder / f"{split}.jsonl", sample_rows(split, task)[:count])
        for split, count in SPLITS.items()
    }


def load_changed(name: str, changed: dict[str, Any]) -> Any:
    from azure.ai.ml import load_job

    return load_job(ROOT / "examples" / f"{name}.yaml", params_override=[{key: v} for key, v in changed.items()])


@pytest.fixture(scope="module", params=TASKS[:2])  # of those that a tiny BERT is for
def submitted(
    request: pytest.FixtureRequest, client: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Submitted:
    task, folder = request.param, tmp_path_factory.mktemp("yaml")
    node = f"jobs.{task}"
    changed = {
        **{f"{node}.inputs.{name}": value for name, value in SETTINGS.items()},
        **{f"{node}.inputs.{name}.path": str(file) for name, file in rows_of(task, folder).items()},
        f"{node}.inputs.pytorch_model_path": {"type": "custom_model", "path": str(tiny_model)},
        f"{node}.outputs": {name: f"${{{{parent.outputs.{name}}}}}" for name in OUTPUTS},
        "outputs": {name: {"type": "uri_folder"} for name in OUTPUTS},
    }
    name = client.jobs.create_or_update(load_changed(f"job_{task}", changed)).name
    client.jobs.stream(name)
    return Submitted(task, name, folder)


def test_the_local_runner_and_a_submitted_job_give_the_same_model(
    submitted: Submitted, client: Any, tiny_model: Path, tmp_path: Path
) -> None:
    task, name, folder = submitted
    client.jobs.download(name, download_path=tmp_path, all=True)
    given = yaml.safe_load((ROOT / "examples" / f"job_{task}.yaml").read_text())["jobs"][task]["inputs"] | SETTINGS
    given |= {f"{split}_file_path": folder / f"{split}.jsonl" for split in SPLITS} | {"pytorch_model_path": tiny_model}
    component = ROOT / "components" / task / "pipeline.yaml"
    words = [f"{key}={value}" for key, value in given.items()]
    pipeline.main([str(component), "--output", str(tmp_path / "here"), "--set", *words])
    for file in ("pytorch_model_folder/model.safetensors", "evaluation_result/predictions.jsonl"):
        here, there = tmp_path / "here" / file, tmp_path / "named-outputs" / file
        assert here.read_bytes() == there.read_bytes(), file


@pytest.mark.parametrize("task", TASKS)
def test_submit_py_sends_what_the_yaml_does(task: str, client: Any, azure: Service) -> None:
    words = [sys.executable, str(ROOT / "examples" / "submit.py"), SUBSCRIPTION, GROUP, WORKSPACE, task]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = re.search(r"/runs/(\w+)\?", done.stdout)
    assert printed, done.stdout
    received = []
    for name in (printed[1], client.jobs.create_or_update(load_changed(f"job_{task}", {})).name):
        azure.cancel(name)
        (step,) = azure.resources[f"jobs/{name}"]["properties"]["jobs"].values()
        received.append({key: entry.get("uri") or entry["value"] for key, entry in step["inputs"].items()})
    model = "t5-small" if task in WRITING else "bert-base-uncased"
    assert received[0] == received[1] and received[0]["huggingface_id"] == model


def test_a_trial_of_the_sweep(client: Any, azure: Service, tiny_model: Path, tmp_path: Path) -> None:
    """It is run by the numbers that are drawn, logs the metric that the sweep goes by, and leaves the model."""
    rows = rows_of("question_answering", tmp_path)
    changed = {
        "jobs.model_import.inputs.pytorch_model_path": {"type": "custom_model", "path": str(tiny_model)},
        "jobs.datapreprocess.inputs.max_seq_length": SETTINGS["max_seq_length"],
        **{f"jobs.datapreprocess.inputs.{name}.path": str(file) for name, file in rows.items()},
        "jobs.finetune.inputs.max_steps": 1,
    }
    job = client.jobs.create_or_update(load_changed("sweep", changed))
    client.jobs.stream(job.name)
    tracked = mlflow.MlflowClient(azure.tracking_uri)
    experiment = tracked.get_experiment_by_name("question-answering")
    by_job = f"tags.mlflow.rootRunId = '{job.name}' and tags.mlflow.runName = 'finetune'"
    (trial,) = tracked.search_runs([experiment.experiment_id], by_job)
    assert trial.data.params["per_device_train_batch_size"] == "8"
    assert job.jobs["finetune"].objective.primary_metric in trial.data.metrics
    client.jobs.download(job.name, download_path=tmp_path, output_name="model")
    assert (tmp_path / "named-outputs" / "model" / "MLmodel").is_file()


def test_a_fault_of_the_user_is_told_in_our_words(client: Any) -> None:
    from azure.ai.ml import Input, dsl, load_component
    from azure.ai.ml.exceptions import JobException

    component = load_component(ROOT / "components" / "question_answering" / "pipeline.yaml")

    @dsl.pipeline(default_compute="serverless")
    def without_a_model() -> dict[str, Any]:
        data = Input(type="uri_file", path=str(SAMPLES / "question_answering" / "test.jsonl"))
        return {"model": component(train_file_path=data).outputs.mlflow_model_folder}

    name = client.jobs.create_or_update(without_a_model()).name
    with pytest.raises(JobException) as caught:
        client.jobs.stream(name)
    assert "question_answering_model_import ended with exit code 2" in str(caught.value)
    assert "parameter error: no model is given" in str(caught.value)
