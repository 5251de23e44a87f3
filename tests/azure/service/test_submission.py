"""What a job is given, what is refused before anything is sent, and the job that azure-ai-ml makes of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.azure.pipeline_yaml import Pipeline, load_pipeline
from finetune.azure.service.submission import _message, build, follow, send, settle_inputs
from finetune.core.errors import ParameterError
from tests.conftest import ROOT, SAMPLES

TRAIN = SAMPLES / "question_answering" / "train.jsonl"
DATA = "azureml:squad:3"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(ROOT / "components" / "question_answering" / "pipeline.yaml")


def faults(pipeline: Pipeline, **values: str) -> dict[str, str]:
    with pytest.raises(ParameterError) as caught:
        settle_inputs(pipeline, values)
    return {fault.what: fault.fix for fault in caught.value.faults}


def test_all_that_is_wrong_is_said_at_once(pipeline: Pipeline, tmp_path: Path) -> None:
    missing = tmp_path / "train.jsonl"
    found = faults(
        pipeline,
        learning_rte="1e-4",
        num_train_epochs="many",
        train_file_path=str(missing),
        huggingface_id="it's",
        dataset_name=str(tmp_path),
    )
    assert found == {
        "the pipeline has no input 'learning_rte'; did you mean learning_rate?": "",
        "--set num_train_epochs=many must be an integer": "",
        f"--set train_file_path={missing} is not there": "give the path of a file that is there",
        f"--set dataset_name={tmp_path} is a folder of this machine": "--set train_file_path=FILE",
        "huggingface_id: \"it's\" can't be given to question_answering_model_import by Azure ML": "a value without '",
    }


def test_files_of_this_machine_are_made_whole_and_addresses_stay(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TRAIN.parent)
    given = {
        "train_file_path": "train.jsonl",
        "test_file_path": DATA,
        "validation_file_path": "https://host/rows.jsonl",
    }
    assert settle_inputs(pipeline, given) == {**given, "train_file_path": str(TRAIN)}


def test_compute_is_that_of_every_step_without_one(pipeline: Pipeline) -> None:
    given = {"compute_preprocess": "cpu", "huggingface_id": "bert-base-uncased"}
    assert settle_inputs(pipeline, given) == given
    steps = {f"compute_{step}": "gpu" for step in ("model_import", "finetune", "model_evaluation")}
    assert settle_inputs(pipeline, given, "gpu") == {**given, **steps}


@pytest.mark.slow
def test_azure_accepts_the_job(pipeline: Pipeline) -> None:
    values = {
        "train_file_path": str(TRAIN),
        "test_file_path": DATA,
        "num_train_epochs": "3",
        "learning_rate": "1e-4",
        "apply_lora": "True",
    }
    job = build(pipeline, settle_inputs(pipeline, values, "gpu"), "gpu", "an-experiment")
    assert job._validate().passed
    assert (job.settings.default_compute, job.experiment_name) == ("gpu", "an-experiment")
    assert {name: output.mode for name, output in job.outputs.items()} == dict.fromkeys(pipeline.outputs, "rw_mount")
    (step,) = job.jobs.values()
    sent = {name: step.inputs[name]._data for name in (*values, "compute_finetune")}
    assert [(sent[name].type, sent[name].path) for name in ("train_file_path", "test_file_path")] == [
        ("uri_file", str(TRAIN)),
        ("uri_file", DATA),
    ]
    literals = (sent["num_train_epochs"], sent["learning_rate"], sent["apply_lora"], sent["compute_finetune"])
    assert literals == (3, 1e-4, "true", "gpu")


def test_the_message_of_a_failed_run() -> None:
    said = 'Exception : \n {\n "error": {"code": "UserError", "message": "it broke"}\n} '
    assert _message(said) == "it broke"
    assert _message("something else") == "something else"


@pytest.mark.slow
def test_a_compute_that_is_not_there() -> None:
    from azure.core.exceptions import ResourceNotFoundError

    def get(name: str) -> None:
        if name != "cpu":
            raise ResourceNotFoundError("not found")

    compute = SimpleNamespace(get=get, list=lambda: [SimpleNamespace(name="cpu"), SimpleNamespace(name="gpu-large")])
    jobs = SimpleNamespace(create_or_update=lambda job: "sent")
    client = SimpleNamespace(compute=compute, jobs=jobs)
    job = SimpleNamespace(settings=SimpleNamespace(default_compute="serverless"))
    assert send(client, job, {"compute_preprocess": "azureml:cpu", "compute_finetune": "serverless"}) == "sent"
    with pytest.raises(ParameterError, match=r"no compute 'gpu-larg'; did you mean gpu-large\?"):
        send(client, job, {"compute_preprocess": "cpu", "compute_finetune": "gpu-larg"})


@pytest.mark.slow
def test_an_interrupt_leaves_the_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from azure.ai.ml.exceptions import JobException

    def stream(name: str) -> None:
        raise JobException("interrupted", "interrupted") from KeyboardInterrupt()

    client = SimpleNamespace(jobs=SimpleNamespace(stream=stream), resource_group_name="g", workspace_name="w")
    with pytest.raises(KeyboardInterrupt):
        follow(client, "happy_fly")
    command = "az ml job cancel --name happy_fly --resource-group g --workspace-name w"
    assert capsys.readouterr().out == f"the run goes on; to end it: {command}\n"
