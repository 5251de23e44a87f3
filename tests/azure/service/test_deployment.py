"""The names that follow from a model, and what can't be deployed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from finetune.azure.service import deployment
from finetune.azure.service.connection import Place
from finetune.azure.service.deployment import ENDPOINT_NAME, REQUEST, make_endpoint, plan, removal, request_of
from finetune.core.errors import ModelError, ParameterError, StepError

OUTPUT = "azureml://jobs/happy_fly_1/outputs/mlflow_model_folder"
EXAMPLE = {"dataframe_split": {"columns": ["tokens"], "data": [["a"]]}, "params": {"x": 1}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The files of an MLflow model that matter here."""
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": {}}}))
    (tmp_path / REQUEST).write_text(json.dumps(EXAMPLE))
    return tmp_path


def test_the_same_model_has_the_same_names(model: Path) -> None:
    first, again = (plan(str(model), "name", "endpoint", "type") for _ in range(2))
    assert first == again
    (model / REQUEST).touch()
    assert plan(str(model), "name", "endpoint", "type") == first
    (model / "weights").write_text("other")
    assert plan(str(model), "name", "endpoint", "type").version != first.version
    of_run = plan(OUTPUT, "name", "endpoint", "type")
    assert of_run == plan(OUTPUT, "name", "endpoint", "type")
    assert of_run.version != plan(OUTPUT.replace("_1", "_2"), "name", "endpoint", "type").version
    assert all(ENDPOINT_NAME.fullmatch(planned.name) for planned in (first, of_run))


def test_the_image_without_cuda_is_another_deployment(
    model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same model: it follows from the files of the image and the scoring script."""
    copy = tmp_path_factory.mktemp("copy") / "serving"
    shutil.copytree(deployment.SERVING, copy)
    monkeypatch.setattr(deployment, "SERVING", copy)
    usual, first, again = (plan(str(model), "name", "endpoint", "type", image) for image in (False, True, True))
    assert first == again and first.version == usual.version and first.name != usual.name
    assert ENDPOINT_NAME.fullmatch(first.name)
    (copy / "requirements.txt").write_text("torch\n")
    assert plan(str(model), "name", "endpoint", "type", True).name not in (usual.name, first.name)


def test_wrong_names_are_all_said() -> None:
    with pytest.raises(ParameterError) as caught:
        plan("azureml:name:1", "a name", "1-endpoint", "type")
    assert [fault.what for fault in caught.value.faults] == [
        "--name 'a name' can't be the name of a model",
        "--endpoint '1-endpoint' can't be the name of an endpoint",
        "azureml:name:1 is not an output of a run",
    ]


def test_folders_that_are_no_models(model: Path, tmp_path: Path) -> None:
    for break_it, said in (
        ((model / REQUEST).unlink, "can't be served and asked"),
        (lambda: (model / "MLmodel").write_text("flavors: {}"), "can't be served and asked"),
        (lambda: (model / "MLmodel").write_text("[]"), "is not an MLflow model"),
        ((model / "MLmodel").unlink, "is not an MLflow model"),
    ):
        break_it()
        with pytest.raises(ModelError, match=said):
            plan(str(model), "name", "endpoint", "type")


def test_request_and_removal(model: Path) -> None:
    assert request_of(model / REQUEST) == {"input_data": {"columns": ["tokens"], "data": [["a"]]}}
    command = removal(plan(OUTPUT, "name", "endpoint", "type"), Place("s", "g", "w"))
    assert command == (
        "az ml online-endpoint delete --name endpoint --subscription s --resource-group g --workspace-name w"
    )


@pytest.mark.slow
def test_an_endpoint_that_is_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

    class Poller:
        """Of something that takes two looks, and fails."""

        looks = 0

        def done(self) -> bool:
            return self.looks == 2

        def wait(self, seconds: float) -> None:
            self.looks += 1

        def status(self) -> str:
            return "InProgress"

        def result(self) -> None:
            raise HttpResponseError("no quota")

    def get(name: str) -> None:
        raise ResourceNotFoundError("not found")

    endpoints = SimpleNamespace(get=get, begin_create_or_update=lambda endpoint: Poller())
    with pytest.raises(StepError) as caught:
        make_endpoint(SimpleNamespace(online_endpoints=endpoints), plan(OUTPUT, "name", "endpoint", "type"))
    (fault,) = caught.value.faults
    assert (fault.what, fault.why) == ("endpoint endpoint failed", "no quota")
    assert capsys.readouterr().out == "endpoint endpoint: InProgress, 0 s\n" * 2
