"""finetune deploy: what is said and refused before anything is made."""

import pytest

from finetune.azure.service import connection
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


def test_each_kind_of_endpoint_has_its_own_machine() -> None:
    words = [OUTPUT, "--endpoint", "answers"]
    for more, said in (
        (["--compute", "cheap"], ["--compute is for batch endpoints"]),
        (
            ["--batch", "--instance-type", "Standard_DS3_v2"],
            ["--instance-type is for online endpoints", "--compute is missing"],
        ),
    ):
        with pytest.raises(ParameterError) as caught:
            main([*words, *more])
        assert [fault.what for fault in caught.value.faults] == said


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
