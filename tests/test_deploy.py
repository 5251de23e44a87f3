"""finetune deploy: what is said and refused before anything is made."""

from pathlib import Path

import pytest

from finetune.azure.service import connection, deployment
from finetune.core.errors import ModelError, ParameterError
from finetune.deploy import main

OUTPUT = "azureml://jobs/happy_fly_1/outputs/mlflow_model_folder"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "connect", lambda place: pytest.fail("connected"))


def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    main([OUTPUT, "--endpoint", "answers", "--dry-run"])
    printed = capsys.readouterr().out.splitlines()
    version = printed[1].split("version ")[1].split(",")[0]
    assert printed == [
        "[deploy]",
        f"model       finetuned, version {version}, from {OUTPUT}",
        "endpoint    answers",
        f"deployment  model-{version} on Standard_DS3_v2",
    ]


def test_dry_run_of_a_batch_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    main([OUTPUT, "--endpoint", "answers", "--batch", "--compute", "cheap", "--dry-run"])
    endpoint, deployment = capsys.readouterr().out.splitlines()[-2:]
    assert endpoint == "batch endpoint  answers" and deployment.endswith(" on cheap")


@pytest.mark.parametrize(
    ("folder", "known"),
    [("", None), ("/paths/", None), ("/paths/mlflow_model", "mlflow_model"), ("/paths/a.b/c/", "a.b/c")],
)
def test_a_folder_of_an_output(folder: str, known: str | None) -> None:
    match = deployment.OF_A_RUN.fullmatch(f"azureml://jobs/job/outputs/model{folder}")
    assert match and match[3] == known


@pytest.mark.parametrize(
    "folder", ["/pathsx", "/paths/../up", "/paths//a", f"/paths/{'a' * 100}!", "/paths/" + "a/" * 100 + "!"]
)
def test_what_is_no_folder_of_an_output(folder: str) -> None:
    """Said at once, however long it is."""
    with pytest.raises(ParameterError, match="is not an output of a run"):
        main([f"azureml://jobs/job/outputs/model{folder}", "--endpoint", "answers", "--dry-run"])


def test_each_kind_of_endpoint_has_its_own_machine() -> None:
    words = [OUTPUT, "--endpoint", "answers"]
    for more, said in (
        (["--compute", "cheap"], ["--compute is for batch endpoints"]),
        (
            ["--batch", "--cpu-image", "--instance-type", "Standard_DS3_v2"],
            [
                "--cpu-image is for online endpoints",
                "--instance-type is for online endpoints",
                "--compute is missing",
            ],
        ),
    ):
        with pytest.raises(ParameterError) as caught:
            main([*words, *more])
        assert [fault.what for fault in caught.value.faults] == said


def test_dry_run_with_the_image_without_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    main([OUTPUT, "--endpoint", "answers", "--cpu-image", "--dry-run"])
    *_, name, environment = capsys.readouterr().out.splitlines()
    version = environment.removeprefix("environment finetune-serving, version ")
    assert name.startswith("deployment  cpu-") and name.endswith(f"-{version[:6]} on Standard_DS3_v2")


def test_the_image_without_cuda_on_a_gpu_machine_or_outside_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [OUTPUT, "--endpoint", "answers", "--cpu-image", "--instance-type", "Standard_NC4as_T4_v3"]
    monkeypatch.setattr(deployment, "SERVING", tmp_path / "nowhere")
    with pytest.raises(ParameterError) as caught:
        main(words)
    assert [fault.what for fault in caught.value.faults] == [
        "this is not a checkout of the project",
        "--cpu-image and --instance-type Standard_NC4as_T4_v3",
    ]


def test_wrong_words_are_all_said() -> None:
    with pytest.raises(ParameterError) as caught:
        main(["--instance_type", "x", "--name"])
    assert [fault.what for fault in caught.value.faults] == [
        "unknown option --instance_type; did you mean --instance-type?",
        "--name has no value",
        "--endpoint is missing",
    ]
    with pytest.raises(ParameterError, match="no model is given"):
        main(["--endpoint", "answers"])


def test_a_folder_that_is_no_model() -> None:
    with pytest.raises(ModelError, match="nowhere is not a folder"):
        main(["nowhere", "--endpoint", "answers"])
