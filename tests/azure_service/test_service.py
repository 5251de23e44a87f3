"""The real azure-ai-ml against the stand-in: what it registers, submits, watches, cancels and fetches."""

import json
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.azure_service import steps
from tests.azure_service.service import Service

pytestmark = [pytest.mark.azure, pytest.mark.slow]
FINISHED = ("Completed", "Failed", "Canceled")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of two steps and a data file."""
    folder = tmp_path_factory.mktemp("my project")
    steps.write_pipeline(folder)
    (folder / "rows.csv").write_text("a,b\n")
    return folder


def submitted(client: Any, job: Any) -> Any:
    """The job when it has ended."""
    name = client.jobs.create_or_update(job, experiment_name="tries").name
    end = time.monotonic() + 120
    while (found := client.jobs.get(name)).status not in FINISHED and time.monotonic() < end:
        time.sleep(0.3)
    return found


def seen(client: Any, job: str, folder: Path, output: str = "result", rank: int = 0) -> Any:
    """What a step wrote down, downloaded."""
    client.jobs.download(job, output_name=output, download_path=folder)
    return json.loads((folder / "named-outputs" / output / f"seen.{rank}.json").read_text())


@pytest.fixture(scope="module")
def by_dsl(client: Any, root: Path) -> Any:
    """A finished job that dsl and load_component made of the pipeline component."""
    from azure.ai.ml import Input, dsl, load_component

    pipeline = load_component(root / "pipeline.yaml")

    @dsl.pipeline(default_compute="serverless")
    def tried() -> dict[str, Any]:
        data = Input(type="uri_file", path=str(root / "rows.csv"))
        step = pipeline(text="hello", size=0, data=data, processes=2)
        return {"result": step.outputs.result}

    return submitted(client, tried())


def test_a_job_of_dsl_runs_to_its_end(by_dsl: Any, client: Any) -> None:
    assert by_dsl.status == "Completed"
    children = [(child.display_name, child.status) for child in client.jobs.list(parent_job_name=by_dsl.name)]
    assert children == [("one", "Completed"), ("two", "Completed")]
    assert by_dsl.name in [job.name for job in client.jobs.list()]


def test_a_step_has_what_was_received_alone(by_dsl: Any, client: Any, azure: Service, tmp_path: Path) -> None:
    """Zero is a value, an optional input that isn't set has none, and a default holds where nothing is given."""
    two = seen(client, by_dsl.name, tmp_path)
    folder = Path(two["words"]["--folder"])
    one = json.loads((folder / "seen.0.json").read_text())
    assert one["words"].keys() == {"--text", "--size", "--rate", "--data", "--out"}
    assert [one["words"][f"--{name}"] for name in ("text", "size", "rate")] == ["hello", "0", "0.5"]
    assert Path(one["words"]["--data"]).read_text() == "a,b\n"
    assert Path(one["words"]["--data"]).is_relative_to(azure.folder / "blob")
    assert one["files"] == ["step.py"] and one["env"]["PYTHONPATH"] is None


def test_two_processes_on_a_machine(by_dsl: Any, client: Any, tmp_path: Path) -> None:
    found = [seen(client, by_dsl.name, tmp_path, rank=rank) for rank in (0, 1)]
    assert [(item["env"]["RANK"], item["env"]["WORLD_SIZE"]) for item in found] == [("0", "2"), ("1", "2")]
    assert found[0]["pid"] != found[1]["pid"]


def test_runs_are_tracked_under_the_job(by_dsl: Any, client: Any, azure: Service) -> None:
    uri = client.workspaces.get("ws").mlflow_tracking_uri
    assert uri == azure.tracking_uri
    runs = mlflow.MlflowClient(uri).search_runs(
        [e.experiment_id for e in mlflow.MlflowClient(uri).search_experiments()],
        f"tags.mlflow.rootRunId='{by_dsl.name}'",
    )
    assert sorted(run.data.tags["mlflow.runName"] for run in runs) == ["one", "two"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_the_logs_of_a_child_are_downloaded(by_dsl: Any, client: Any, tmp_path: Path) -> None:
    one, two = client.jobs.list(parent_job_name=by_dsl.name)
    client.jobs.download(one.name, download_path=tmp_path / "one")
    assert (tmp_path / "one/artifacts/user_logs/std_log.txt").read_text() == "rank 0 is here\n"
    client.jobs.download(two.name, download_path=tmp_path / "two")
    assert (tmp_path / "two/artifacts/user_logs/std_log_process_1.txt").read_text() == "rank 1 is here\n"


def test_code_is_uploaded_once(by_dsl: Any, client: Any, azure: Service, root: Path) -> None:
    from azure.ai.ml import load_component

    assert by_dsl.status == "Completed"
    before = azure.blobs.uploads
    made = client.components.create_or_update(load_component(root / "first.yaml"))
    assert (made.name, made.version, azure.blobs.uploads) == ("first", "1", before)
    assert client.components.get("first", version="1").command == load_component(root / "first.yaml").command


def test_an_environment_and_its_docker_context(client: Any, azure: Service) -> None:
    from azure.ai.ml import load_environment

    named = [{"name": "finetune-cpu"}, {"version": "1"}]
    made = client.environments.create_or_update(
        load_environment("environments/cpu/environment.yaml", params_override=named)
    )
    context = azure.local(client.environments.get(made.name, version=made.version).build.path)
    assert (context / "Dockerfile").read_text() == Path("environments/cpu/Dockerfile").read_text()


def test_a_registered_pipeline_component_and_a_job_yaml(client: Any, root: Path, tmp_path: Path) -> None:
    from azure.ai.ml import load_component, load_job

    made = client.components.create_or_update(load_component(root / "pipeline.yaml"))
    spec = {
        "type": "pipeline",
        "settings": {"default_compute": "azureml:serverless"},
        "inputs": {"word": "of the job"},
        "outputs": {"result": {"type": "uri_folder"}},
        "jobs": {
            "both": {
                "type": "pipeline",
                "component": f"azureml:{made.name}:{made.version}",
                "inputs": {"text": "${{parent.inputs.word}}", "size": 7},
                "outputs": {"result": "${{parent.outputs.result}}"},
            }
        },
    }
    job = submitted(client, load_job(steps.write_yaml(root / "job.yaml", spec)))
    assert job.status == "Completed"
    one = json.loads((Path(seen(client, job.name, tmp_path)["words"]["--folder"]) / "seen.0.json").read_text())
    assert (one["words"]["--text"], one["words"]["--size"]) == ("of the job", "7")


def test_a_command_without_component_reads_a_data_asset(client: Any, root: Path, tmp_path: Path) -> None:
    from azure.ai.ml import Input, Output, command
    from azure.ai.ml.entities import Data, Environment

    rows = client.data.create_or_update(Data(name="rows", version="1", type="uri_file", path=str(root / "rows.csv")))
    asked = command(
        command="python step.py --text '${{inputs.text}}' --data '${{inputs.data}}' --out '${{outputs.result}}'",
        code=str(root / "code"),
        inputs={"text": "two words", "data": Input(type="uri_file", path=f"azureml:{rows.name}:{rows.version}")},
        outputs={"result": Output(type="uri_folder")},
        environment=Environment(**steps.ENVIRONMENT),
        distribution={"type": "pytorch", "process_count_per_instance": 2},
    )
    job = submitted(client, asked)
    assert job.status == "Completed"
    assert list(client.jobs.list(parent_job_name=job.name)) == []
    words = seen(client, job.name, tmp_path, rank=1)["words"]
    assert words["--text"] == "two words" and Path(words["--data"]).read_text() == "a,b\n"
    client.jobs.download(job.name, download_path=tmp_path)
    assert (tmp_path / "artifacts/user_logs/std_log_process_1.txt").read_text() == "rank 1 is here\n"


def test_a_model_that_does_not_load_is_no_deployment(client: Any, tmp_path: Path) -> None:
    from azure.ai.ml.entities import ManagedOnlineDeployment, ManagedOnlineEndpoint, Model
    from azure.core.exceptions import HttpResponseError

    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    model = client.models.create_or_update(Model(name="empty", version="1", path=tmp_path, type="mlflow_model"))
    client.begin_create_or_update(ManagedOnlineEndpoint(name="empty-one", auth_mode="key")).wait()
    asked = ManagedOnlineDeployment(name="demo", endpoint_name="empty-one", model=model.id, instance_count=1)
    with pytest.raises(HttpResponseError, match="python_function"):
        client.online_deployments.begin_create_or_update(asked).result()
    client.online_endpoints.begin_delete(name="empty-one").wait()


def one_step(root: Path, text: str) -> Any:
    """A job of one component."""
    from azure.ai.ml import dsl, load_component

    component = load_component(root / "first.yaml")

    @dsl.pipeline(default_compute="serverless")
    def alone() -> dict[str, Any]:
        step = component(text=text)
        return {"result": step.outputs.out}

    return alone()


def test_a_step_that_fails_is_told_with_the_end_of_its_log(client: Any, root: Path) -> None:
    from azure.ai.ml.exceptions import JobException

    name = client.jobs.create_or_update(one_step(root, "fail"), experiment_name="tries").name
    with pytest.raises(JobException, match="data error: row 3 has no answer"):
        client.jobs.stream(name)
    assert client.jobs.get(name).status == "Failed"
    [child] = client.jobs.list(parent_job_name=name)
    assert child.status == "Failed"


def test_a_job_that_is_canceled_ends_its_process(client: Any, azure: Service, root: Path) -> None:
    name = client.jobs.create_or_update(one_step(root, "wait"), experiment_name="tries").name
    written = azure.folder / "blob/azureml-blobstore/azureml" / name / "result/seen.0.json"
    end = time.monotonic() + 60
    while not written.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)
    process = Path("/proc") / str(json.loads(written.read_text())["pid"])
    assert client.jobs.get(name).status == "Running" and process.is_dir()
    client.jobs.begin_cancel(name).wait()
    while client.jobs.get(name).status not in FINISHED and time.monotonic() < end:
        time.sleep(0.1)
    assert client.jobs.get(name).status == "Canceled"
    assert not process.is_dir()


def test_nothing_was_asked_that_is_not_there(client: Any, azure: Service) -> None:
    """But for blobs not yet uploaded, and for the names of assets that are about to be made."""
    assert client is not None
    strange = [line for line in azure.unknown if not line.startswith("HEAD ") and "/versions" not in line]
    assert [line for line in strange if "/environments/" not in line and "/components/" not in line] == []
