"""Our own pipeline as examples/job.yaml submits it: the model of the local runner, and our errors."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import pipeline
from tests.conftest import ROOT, SAMPLES, sample_rows, write_jsonl

pytestmark = [pytest.mark.azure, pytest.mark.slow, pytest.mark.thorough]
SETTINGS = {
    "max_seq_length": 96,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "precision": "32",
    "number_of_gpu_to_use_finetuning": 2,  # processes: they train on the CPU
}
SPLITS = {"train": 24, "validation": 4, "test": 4}  # rows
OUTPUTS = ("pytorch_model_folder", "evaluation_result")
NODE = "question_answering"


@pytest.fixture(scope="module")
def submitted_yaml(client: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The finished job of the YAML on a tiny model and few rows, and the folder with its files."""
    from azure.ai.ml import load_job

    folder = tmp_path_factory.mktemp("yaml")
    for split, count in SPLITS.items():
        write_jsonl(folder / f"{split}.jsonl", sample_rows(split)[:count])
    node = f"jobs.{NODE}"
    changed = {
        **{f"{node}.inputs.{name}": value for name, value in SETTINGS.items()},
        **{f"{node}.inputs.{split}_file_path.path": str(folder / f"{split}.jsonl") for split in SPLITS},
        f"{node}.inputs.pytorch_model_path": {"type": "custom_model", "path": str(tiny_model)},
        f"{node}.outputs": {name: f"${{{{parent.outputs.{name}}}}}" for name in OUTPUTS},
        "outputs": {name: {"type": "uri_folder"} for name in OUTPUTS},
    }
    job = load_job(ROOT / "examples" / "job.yaml", params_override=[{name: v} for name, v in changed.items()])
    name = client.jobs.create_or_update(job).name
    client.jobs.stream(name)
    return name, folder


def test_the_local_runner_and_a_submitted_job_give_the_same_model(
    submitted_yaml: tuple[str, Path], client: Any, tiny_model: Path, tmp_path: Path
) -> None:
    name, folder = submitted_yaml
    client.jobs.download(name, download_path=tmp_path, all=True)
    given = yaml.safe_load((ROOT / "examples" / "job.yaml").read_text())["jobs"][NODE]["inputs"] | SETTINGS
    given |= {f"{split}_file_path": folder / f"{split}.jsonl" for split in SPLITS} | {"pytorch_model_path": tiny_model}
    component = ROOT / "components" / "question_answering" / "pipeline.yaml"
    words = [f"{key}={value}" for key, value in given.items()]
    pipeline.main([str(component), "--output", str(tmp_path / "here"), "--set", *words])
    for file in ("pytorch_model_folder/model.safetensors", "evaluation_result/predictions.jsonl"):
        here, there = tmp_path / "here" / file, tmp_path / "named-outputs" / file
        assert here.read_bytes() == there.read_bytes(), file


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
