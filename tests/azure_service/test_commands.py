"""finetune register, submit and deploy, with the real azure-ai-ml, against the stand-in."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune import deploy, register, run, submit
from finetune.azure.declare import ROOT
from finetune.azure.service.connection import WORKSPACE as OPTIONS
from finetune.azure.service.release import Release, find_release
from finetune.core.errors import ModelError, ParameterError, StepError
from finetune.params.components import TASKS
from finetune.results.limits import UNLIMITED
from tests.azure_service import steps
from tests.azure_service.names import GROUP, REGISTRY, SUBSCRIPTION, WORKSPACE
from tests.azure_service.service import Service
from tests.conftest import finetune_words, sample_rows, write_jsonl

pytestmark = [pytest.mark.azure, pytest.mark.slow]
PLACE = [word for pair in zip(OPTIONS, (SUBSCRIPTION, GROUP, WORKSPACE), strict=True) for word in pair]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a pipeline of two steps."""
    (tmp_path / "my project").mkdir()
    return steps.write_pipeline(tmp_path / "my project")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client looks at a job every 2 seconds, however long that takes."""
    from azure.ai.ml.operations._run_history_constants import RunHistoryConstants

    monkeypatch.setattr(RunHistoryConstants, "_WAIT_COMPLETION_POLLING_INTERVAL_MAX", "2")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# register


@pytest.fixture(params=[["token_classification"], pytest.param([*TASKS], marks=pytest.mark.thorough)])
def release(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Release:
    """What `finetune register` finds: the environments, and the components of some tasks."""
    whole = find_release(ROOT)
    parts = [a for a in whole.assets if a.kind == "environment" or a.path.parent.name in request.param]
    found = replace(whole, assets=tuple(parts))
    monkeypatch.setattr(register, "find_release", lambda root: found)
    return found


def pipelines(release: Release) -> list[str]:
    return [asset.name for asset in release.assets if asset.name.endswith("_pipeline")]


@pytest.mark.thorough
def test_register_twice(azure: Service, capsys: pytest.CaptureFixture[str], release: Release) -> None:
    """All is new, with its code uploaded once; then all is there, and nothing is sent."""
    register.main(PLACE)
    rows = [line.split() for line in capsys.readouterr().out.split("--- done\n")[1].splitlines()]
    assert rows == [[asset.kind, asset.name, release.version, "new"] for asset in release.assets]
    assert {f"{asset.kind}s/{asset.name}/versions/{release.version}" for asset in release.assets} < set(azure.resources)
    assert len([path for path in azure.resources if path.startswith("codes/")]) == 1
    for name in pipelines(release):
        made = azure.resources[f"components/{name}/versions/{release.version}"]["properties"]
        jobs = made["componentSpec"]["jobs"]
        assert {job["componentId"].partition("/components/")[2] for job in jobs.values()} == {
            f"{job}/versions/{release.version}" for job in jobs
        }
    before, uploads = json.dumps(azure.resources), azure.blobs.uploads
    register.main(PLACE)
    assert [line.split()[-1] for line in capsys.readouterr().out.split("--- done\n")[1].splitlines()] == [
        "there"
    ] * len(rows)
    assert (json.dumps(azure.resources), azure.blobs.uploads) == (before, uploads)


@pytest.mark.thorough
def test_register_in_a_registry_twice(azure: Service, capsys: pytest.CaptureFixture[str], release: Release) -> None:
    """All names what it needs by its place in the registry, where its code is too; then nothing is sent."""
    words = ["--registry", REGISTRY]
    register.main(words)
    rows = [line.split() for line in capsys.readouterr().out.split("--- done\n")[1].splitlines()]
    assert rows == [[asset.kind, asset.name, release.version, "new"] for asset in release.assets]
    start = f"azureml://registries/{REGISTRY}"
    ids = [known["id"] for path, known in azure.resources.items() if path.startswith("registries/")]
    made = {f"{start}/{asset.kind}s/{asset.name}/versions/{release.version}" for asset in release.assets}
    assert made == {one for one in ids if "/codes/" not in one}
    specs = {
        path.split("/")[3]: known["properties"]["componentSpec"]
        for path, known in azure.resources.items()
        if path.startswith(f"registries/{REGISTRY}/components/")
    }
    for name, spec in specs.items():
        needs = [job["componentId"] for job in (spec.get("jobs") or {}).values()] or [spec["environment"]]
        assert len(needs) == (4 if name.endswith("_pipeline") else 1) and set(needs) < made
    codes = [spec["code"] for spec in specs.values() if "code" in spec]
    assert len(codes) == len(specs) - len(pipelines(release)) and set(codes) == {one for one in ids if "/codes/" in one}
    folder = azure.local(azure.resources[codes[0].removeprefix("azureml://")]["properties"]["codeUri"])
    assert (folder / "finetune" / "run.py").read_bytes() == (ROOT / "src" / "finetune" / "run.py").read_bytes()
    before, uploads = json.dumps(azure.resources), azure.blobs.uploads
    register.main(words)
    assert [line.split()[-1] for line in capsys.readouterr().out.split("--- done\n")[1].splitlines()] == [
        "there"
    ] * len(rows)
    assert (json.dumps(azure.resources), azure.blobs.uploads) == (before, uploads)


def test_a_registry_that_is_not_there(azure: Service) -> None:
    with pytest.raises(ParameterError, match="there is no registry 'nobody'"):
        register.main(["--registry", "nobody"])


@pytest.mark.thorough
def test_a_process_finds_the_workspace_by_config_json(azure: Service, tmp_path: Path) -> None:
    """As typed by a user, with DefaultAzureCredential."""
    names = {"subscription_id": SUBSCRIPTION, "resource_group": GROUP, "workspace_name": WORKSPACE}
    (tmp_path / "config.json").write_text(json.dumps(names))
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "register"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")  # none of what azure-ai-ml says to programmers
    assert f"workspace {WORKSPACE} in {GROUP}\n" in done.stdout


# submit


def test_submit_follows_and_downloads(azure: Service, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = project.parent / "rows.csv", project.parent / "out"
    rows.write_text("a,b\n")
    words = [str(project), "--set", "text=two words", f"data={rows}", "processes=2", "--download", str(out), *PLACE]
    submit.main(words)
    printed = capsys.readouterr().out
    assert "run " in printed and f"result  {out / 'result'}" in printed
    seen = [json.loads((out / "result" / f"seen.{rank}.json").read_text()) for rank in (0, 1)]
    assert [item["env"]["WORLD_SIZE"] for item in seen] == ["2", "2"]
    first = contents(out)
    (out / "mine.txt").write_text("mine")
    submit.main(words)  # what an earlier download left is replaced, and nothing else
    assert contents(out).keys() == {*first, "mine.txt"}


def test_a_failing_step(azure: Service, project: Path) -> None:
    out = project.parent / "out"
    with pytest.raises(StepError) as caught:
        submit.main([str(project), "--set", "text=hello", "text_of_second=fail", "--download", str(out), *PLACE])
    step, whole = caught.value.faults
    assert step.what == "two failed" and "data error: row 3 has no answer" in step.why
    assert whole.what.endswith(" failed") and whole.fix
    assert not out.exists()


@pytest.mark.thorough
def test_without_waiting(azure: Service, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice after the same seed, as in a notebook: they are two jobs."""
    names = set()
    for _ in range(2):
        random.seed(42)
        submit.main([str(project), "--set", "text=hello", "--no-wait", "--experiment", "tries", *PLACE])
        names.add(capsys.readouterr().out.split("run ")[-1].split(":")[0])
    assert len(names) == 2
    for name in names:
        assert azure.resources[f"jobs/{name}"]["properties"]["experimentName"] == "tries"
        azure.runners[name].wait()


def test_the_images_of_the_components_go_along(
    azure: Service, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", sample_rows("train")[:8])
    words = [f"pytorch_model_path={tiny_model}", f"train_file_path={rows}", "--no-wait", *PLACE]
    submit.main([str(ROOT / "components" / "question_answering" / "pipeline.yaml"), "--set", *words])
    azure.cancel(capsys.readouterr().out.split("run ")[1].split(":")[0])
    sent = [known for path, known in azure.resources.items() if path.startswith("environments/CliV2Anonymous")]
    found = [
        contents(azure.local(known["properties"]["build"]["contextUri"]))
        for known in sent
        if known["properties"].get("build")
    ]
    assert len(found) == 2
    assert all(contents(ROOT / "environments" / name) in found for name in ("cpu", "gpu"))


def test_what_is_the_users_is_refused_before_anything_is_sent(azure: Service, project: Path) -> None:
    out = project.parent / "out"
    (out / "result").mkdir(parents=True)
    (out / "result" / "mine.txt").touch()
    sent = len(azure.resources)
    with pytest.raises(ParameterError, match="holds what this program did not write"):
        submit.main([str(project), "--set", "text=hello", "--download", str(out), *PLACE])
    assert len(azure.resources) == sent


def test_a_workspace_that_is_not_there(azure: Service, project: Path) -> None:
    with pytest.raises(ParameterError, match="there is no workspace 'nowhere'"):
        submit.main([str(project), "--set", "text=hello", *PLACE[:-1], "nowhere"])


# deploy


@pytest.fixture(scope="module")
def model(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MLflow folder of a run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    run.main(finetune_words(prepared, folder, max_steps=1, per_device_train_batch_size=8))
    return folder / "mlflow"


def asked(printed: str) -> tuple[Any, Any]:
    """The request and the answer that deploy printed."""
    request, answer = (
        json.loads(line.split(maxsplit=1)[1]) for line in printed.splitlines() if line.startswith(("request", "answer"))
    )
    return request, answer


def test_deploy_a_folder_twice(azure: Service, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(model), "--endpoint", "of-a-folder", "--name", "answers", *PLACE]
    deploy.main(words)
    printed = capsys.readouterr().out
    assert [
        line.rpartition(": ")[2] for line in printed.splitlines() if line.startswith(("model", "endp", "depl"))
    ] == ["new"] * 3
    request, answer = asked(printed)
    assert request["input_data"]["columns"] == ["question", "context"]
    assert isinstance(answer[0]["answer"], str)
    assert "az ml online-endpoint delete --name of-a-folder " in printed
    made = azure.resources["onlineEndpoints/of-a-folder"]["properties"]["traffic"]
    assert list(made.values()) == [100]
    uploads = azure.blobs.uploads
    deploy.main(words)
    printed = capsys.readouterr().out
    assert [
        line.rpartition(": ")[2] for line in printed.splitlines() if line.startswith(("model", "endp", "depl"))
    ] == ["there"] * 3
    assert asked(printed) == (request, answer) and azure.blobs.uploads == uploads


def test_deploy_with_the_image_without_cuda(azure: Service, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the deployment of the same model in Azure ML's own image: its environment and scoring script go along."""
    words = [str(model), "--endpoint", "two-images", *PLACE]
    deploy.main(words)
    usual = asked(capsys.readouterr().out)
    deploy.main([*words, "--cpu-image"])
    printed = capsys.readouterr().out
    assert asked(printed) == usual
    assert "note: deployment model-" in printed
    name = printed.split("deployment ")[1].split(":")[0]
    made = azure.resources[f"onlineEndpoints/two-images/deployments/{name}"]["properties"]
    environment = azure.resources[made["environmentId"].partition("/workspaces/ws/")[2]]["properties"]
    context = azure.local(environment["build"]["contextUri"])
    assert contents(context) == contents(ROOT / "environments" / "serving")
    assert azure.resources["onlineEndpoints/two-images"]["properties"]["traffic"] == {name: 100}
    deploy.main([*words, "--cpu-image"])
    assert f"deployment {name}: there\n" in capsys.readouterr().out


def write_copying_pipeline(folder: Path) -> Path:
    """A pipeline that hands its model on as its output."""
    out, model = {"model": {"type": "mlflow_model"}}, {"model": {"type": "mlflow_model"}}
    component = {"type": "command", "name": "copy", "version": "1", "inputs": model, "outputs": out}
    copies = "cp -r '${{inputs.model}}'/. '${{outputs.model}}'", "cp -r '${{inputs.model}}' '${{outputs.model}}/inside'"
    command = " && ".join(copies)
    steps.write_yaml(folder / "copy.yaml", {**component, "command": command, "environment": steps.ENVIRONMENT})
    job = {"component": "file:./copy.yaml", "type": "command"}
    job |= {"inputs": {"model": "${{parent.inputs.model}}"}, "outputs": {"model": "${{parent.outputs.model}}"}}
    spec = {
        "type": "pipeline",
        "name": "copying",
        "version": "1",
        "inputs": model,
        "outputs": out,
        "jobs": {"copy": job},
    }
    return steps.write_yaml(folder / "pipeline.yaml", spec)


def test_deploy_the_output_of_a_run(
    azure: Service, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit.main([str(write_copying_pipeline(tmp_path)), "--set", f"model={model}", *PLACE])
    name = capsys.readouterr().out.split("run ")[1].split(":")[0]
    with pytest.raises(ParameterError, match=r"no output 'modl'; did you mean model\?"):
        deploy.main([f"azureml://jobs/{name}/outputs/modl", "--endpoint", "of-a-run", *PLACE])
    with pytest.raises(ParameterError, match="there is no run 'nobody'"):
        deploy.main(["azureml://jobs/nobody/outputs/model", "--endpoint", "of-a-run", *PLACE])
    for place in ("model", "model/paths/inside"):  # an export's MLflow model is a folder of its output
        deploy.main([f"azureml://jobs/{name}/outputs/{place}", "--endpoint", "of-a-run", *PLACE])
        assert isinstance(asked(capsys.readouterr().out)[1][0]["answer"], str)
    with pytest.raises(ModelError, match=r"/paths/nowhere has no serving_input_example\.json"):
        deploy.main([f"azureml://jobs/{name}/outputs/model/paths/nowhere", "--endpoint", "of-a-run", *PLACE])


def test_a_deployment_that_does_not_start(azure: Service, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "serving.py").write_text("raise ValueError('broken')")
    with pytest.raises(StepError, match="failed"):
        deploy.main([str(broken), "--endpoint", "broken", *PLACE])
    (broken / "serving_input_example.json").unlink()
    with pytest.raises(ModelError, match="can't be served and asked"):
        deploy.main([str(broken), "--endpoint", "broken", *PLACE])


# deploy --batch


@pytest.fixture
def own_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """azure-ai-ml leaves the deployment of a request in the headers of all later ones."""
    from azure.ai.ml.constants._endpoint import EndpointInvokeFields

    monkeypatch.setattr(EndpointInvokeFields, "DEFAULT_HEADER", {"Content-Type": "application/json"})


@pytest.mark.thorough
@pytest.mark.usefixtures("own_headers")
def test_deploy_a_batch_endpoint(
    azure: Service, client: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve files in two mini batches, each row of them answered; one that can't be is an error that names it."""
    from azure.ai.ml import Input
    from azure.ai.ml.exceptions import JobException

    words = [str(model), "--name", "of-files", "--endpoint", "files", "--batch", "--compute", "cpu-cluster", *PLACE]
    for state in ("new", "there"):
        deploy.main(words)
        printed = capsys.readouterr().out
        assert [line.rpartition(": ")[2] for line in printed.splitlines() if ": " in line] == [state] * 3
    assert "CSV files with the columns question, context;" in printed
    assert "az ml batch-endpoint invoke --name files --input FOLDER --subscription" in printed
    (made,) = [known for path, known in azure.resources.items() if path.startswith("batchEndpoints/files/deployments/")]
    sent = made["properties"]
    assert (sent["miniBatchSize"], sent["outputFileName"], sent["errorThreshold"]) == (10, "predictions.csv", 0)
    assert json.loads(sent["environmentVariables"]["SERVING_MODEL_CONFIG"]) == UNLIMITED
    files = tmp_path / "files"  # of their own: a downloaded folder among them would be scored as a file
    files.mkdir()
    for i in range(12):
        (files / f"{i:02}.csv").write_text(f"id,question,context\n{i},Who?,Ada wrote page {i}.\n,When?,In 18{i:02}.\n")
    job = client.batch_endpoints.invoke(endpoint_name="files", input=Input(path=str(files), type="uri_folder"))
    client.jobs.stream(job.name)
    (step,) = client.jobs.list(parent_job_name=job.name)
    for name in (step.name, job.name):  # as the public notebooks have it, and as Azure's documentation
        client.jobs.download(name=name, output_name="score", download_path=tmp_path / name)
        with (tmp_path / name / "named-outputs" / "score" / "predictions.csv").open(encoding="utf-8") as file:
            rows = list(csv.reader(file))
    assert [(row, file) for row, _, file in rows] == [(str(j), f"{i:02}.csv") for i in range(12) for j in (0, 1)]
    assert all(isinstance(json.loads(answer)["answer"], str) for _, answer, _ in rows)
    (files / "03.csv").write_text("question,context\nWho?,\n")
    job = client.batch_endpoints.invoke(endpoint_name="files", input=Input(path=str(files), type="uri_folder"))
    with pytest.raises(JobException, match=r"03\.csv'. Exception: .*context of row 0 is nan \(an empty cell\)"):
        client.jobs.stream(job.name)
