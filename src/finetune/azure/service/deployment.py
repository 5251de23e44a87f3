"""A finetuned model as an online endpoint of Azure ML: registered, deployed and asked.

Azure ML serves it without code of the user's, from an image that it builds of the model's conda.yaml; or a scoring
script of ours does, in an image without CUDA.
"""

import hashlib
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from finetune.azure import snapshot
from finetune.azure.declare import ROOT
from finetune.azure.service.connection import Place, explained, reason, require
from finetune.core import timing
from finetune.core.console import say
from finetune.core.errors import Fault, ModelError, ParameterError, StepError
from finetune.core.types import Json
from finetune.params.schema import did_you_mean

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import BatchEndpoint, OnlineEndpoint
    from azure.ai.ml.operations import BatchEndpointOperations, OnlineEndpointOperations
    from azure.core.polling import LROPoller

# Job, output, and a folder of it. A name ends at a "/" and nowhere else, so that a wrong one is refused at once.
OF_A_RUN = re.compile(r"azureml://jobs/([\w-]+)/outputs/(\w+)(?:/paths(?:/(\w[\w.-]*(?:/\w[\w.-]*)*)?/?)?)?")
MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,254}")
ENDPOINT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")
REQUEST = "serving_input_example.json"  # in an MLflow model: its input example, as a server takes it
GPU_MACHINE = re.compile(r"standard_n[a-z]", re.IGNORECASE)
SERVING = ROOT / "environments" / "serving"
SCRIPT = ROOT / "src" / "finetune" / "azure" / "scoring" / "score.py"
DIGITS = 12
LOG_LINES_SHOWN = 30


@dataclass(frozen=True)
class Deployment:
    """What is made, by names that follow from the model, so that the same model is made once."""

    source: str  # a folder here, or azureml://jobs/JOB/outputs/NAME, of which /paths/FOLDER is a folder
    model: str
    version: str
    endpoint: str
    machine: str  # its type; of a batch endpoint, the name of a cluster
    image: str = ""  # version of the image without CUDA and of its scoring script; "" is Azure ML's own

    @property
    def name(self) -> str:
        """The deployment's name in its endpoint."""
        return f"cpu-{self.version}-{self.image[:6]}" if self.image else f"model-{self.version}"


def plan(source: str, name: str, endpoint: str, machine: str, cpu_image: bool = False) -> Deployment:
    """Return what is to be made of a model. Raises: ParameterError for names, ModelError for a folder."""
    faults = refuse_cpu_image(machine) if cpu_image else []
    if not MODEL_NAME.fullmatch(name):
        faults.append(
            Fault(f"--name {name!r} can't be the name of a model", why="letters, digits, - _ and . are allowed")
        )
    if not ENDPOINT_NAME.fullmatch(endpoint):
        why = "3 to 32 letters, digits and -, a letter first, no - at the end"
        faults.append(Fault(f"--endpoint {endpoint!r} can't be the name of an endpoint", why=why))
    if source.startswith("azureml:") and not OF_A_RUN.fullmatch(source):
        fix = "azureml://jobs/JOB/outputs/mlflow_model_folder"
        faults.append(Fault(f"{source} is not an output of a run", fix=fix))
    if faults:
        raise ParameterError(*faults)
    if source.startswith("azureml:"):
        version = hashlib.sha256(source.encode()).hexdigest()
    else:
        refuse_other_folder(Path(source))
        version = snapshot.digest(snapshot.tree(Path(source)))
    image = snapshot.digest({**snapshot.tree(SERVING), Path(SCRIPT.name): SCRIPT})[:DIGITS] if cpu_image else ""
    return Deployment(source, name, version[:DIGITS], endpoint, machine, image)


def refuse_cpu_image(instance_type: str) -> list[Fault]:
    """Return why the image without CUDA can't be had, or not on such a machine."""
    faults = []
    if not SERVING.is_dir():
        why = "--cpu-image takes environments/serving of one"
        faults.append(Fault("this is not a checkout of the project", why=why, fix="pip install -e . in a clone"))
    if GPU_MACHINE.match(instance_type):
        why = "without CUDA, its GPU is left idle"
        faults.append(Fault(f"--cpu-image and --instance-type {instance_type}", why=why, fix="one of them"))
    return faults


def refuse_other_folder(folder: Path) -> None:
    """Raise ModelError if the folder is not an MLflow model with an example of a request."""
    fix = "give the mlflow_model_folder of a run"
    if not folder.is_dir():
        raise ModelError(Fault(f"{folder} is not a folder", fix=fix))
    try:
        spec = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        python = "python_function" in spec["flavors"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        why = f"its file MLmodel can't be read: {type(error).__name__}"
        raise ModelError(Fault(f"{folder} is not an MLflow model", why=why, fix=fix)) from None
    if not python or not (folder / REQUEST).is_file():
        why = f"it has no {REQUEST}" if python else "it has no flavor python_function"
        raise ModelError(Fault(f"{folder} can't be served and asked", why=why, fix=fix))


def find_request(client: "MLClient", planned: Deployment) -> Json:
    """Return the model's own example, in the form that Azure ML's scoring script takes.

    Raises: ParameterError if the run or its output isn't there, ModelError if that is not a model with an example.
    """
    match = OF_A_RUN.fullmatch(planned.source)
    if match is None:
        return request_of(Path(planned.source) / REQUEST)
    with tempfile.TemporaryDirectory() as folder:
        with explained(f"{REQUEST} of {planned.source}"):
            _fetch(client, match[1], match[2], f"{match[3]}/{REQUEST}" if match[3] else REQUEST, folder)
        if not (Path(folder) / REQUEST).is_file():
            fix = "give the mlflow_model_folder of a run that has completed"
            raise ModelError(Fault(f"{planned.source} has no {REQUEST}", fix=fix))
        return request_of(Path(folder) / REQUEST)


def _fetch(client: "MLClient", job: str, output: str, file: str, folder: str) -> None:
    """Download one file of an output: jobs.download would bring the weights too."""
    from azure.ai.ml._artifacts._artifact_utilities import download_artifact_from_aml_uri

    require("run", job, lambda: client.jobs.get(job), list)
    places = client.jobs._get_named_output_uri(job)
    if output not in places:
        near = did_you_mean(output, list(places))
        raise ParameterError(Fault(f"the run {job} has no output {output!r}{near}", why=f"it has: {', '.join(places)}"))
    download_artifact_from_aml_uri(f"{places[output].rstrip('/')}/{file}", folder, client.datastores)


def request_of(example: Path) -> Json:
    """Return the request that a model's example comes to."""
    return {"input_data": json.loads(example.read_text(encoding="utf-8"))["dataframe_split"]}


def register_model(client: "MLClient", planned: Deployment) -> bool:
    """Register the model unless it is there; return whether it is new."""
    from azure.ai.ml.entities import Model
    from azure.core.exceptions import ResourceNotFoundError

    with explained(f"model {planned.model}"):
        try:
            client.models.get(planned.model, planned.version)
            return False
        except ResourceNotFoundError:
            path = planned.source
            client.models.create_or_update(
                Model(name=planned.model, version=planned.version, path=path, type="mlflow_model")
            )
            return True


def make_endpoint(client: "MLClient", planned: Deployment) -> bool:
    """Make the endpoint unless it is there; return whether it is new."""
    from azure.ai.ml.entities import ManagedOnlineEndpoint
    from azure.core.exceptions import ResourceNotFoundError

    with explained(f"endpoint {planned.endpoint}"):
        try:
            client.online_endpoints.get(planned.endpoint)
            return False
        except ResourceNotFoundError:
            put_endpoint(client.online_endpoints, ManagedOnlineEndpoint(name=planned.endpoint, auth_mode="key"))
            return True


def put_endpoint(
    operations: "OnlineEndpointOperations | BatchEndpointOperations", endpoint: "OnlineEndpoint | BatchEndpoint"
) -> None:
    """Make or change an endpoint, by azure-ai-ml's operations of its kind. Raises: StepError if that fails."""
    what = f"endpoint {endpoint.name}"
    if failed := wait(operations.begin_create_or_update(endpoint), what):
        raise StepError(Fault(f"{what} failed", why="\n".join(failed)))


def make_deployment(client: "MLClient", planned: Deployment) -> bool:
    """Deploy the model unless that is done; return whether it is new. Raises: StepError, with its log, if it fails."""
    from azure.ai.ml.entities import DefaultScaleSettings, ManagedOnlineDeployment
    from azure.core.exceptions import ResourceNotFoundError

    what = f"deployment {planned.name}"
    with explained(what):
        try:
            there = client.online_deployments.get(planned.name, planned.endpoint)
        except ResourceNotFoundError:
            there = None
        if there is not None and there.provisioning_state == "Succeeded":
            return False
        deployment = ManagedOnlineDeployment(
            name=planned.name,
            endpoint_name=planned.endpoint,
            model=f"azureml:{planned.model}:{planned.version}",
            instance_type=planned.machine,
            instance_count=1,
            scale_settings=DefaultScaleSettings(),
            **own_image(planned),
        )
        failed = wait(client.online_deployments.begin_create_or_update(deployment), what)
        there = client.online_deployments.get(planned.name, planned.endpoint)
        if failed or there.provisioning_state != "Succeeded":
            lines = [*failed, *_log(client, planned)] or [f"its state is {there.provisioning_state}"]
            fix = "mend that and deploy again: what is there already stays"
            raise StepError(Fault(f"{what} failed", f"endpoint {planned.endpoint}", "\n".join(lines), fix))
    return True


def own_image(planned: Deployment) -> Json:
    """Return the image and the scoring script of a deployment, where they are ours."""
    from azure.ai.ml import load_environment
    from azure.ai.ml.entities import CodeConfiguration

    if not planned.image:
        return {}
    named = [{"name": "finetune-serving"}, {"version": planned.image}]
    return {
        "environment": load_environment(SERVING / "environment.yaml", params_override=named),
        "code_configuration": CodeConfiguration(str(SCRIPT.parent), SCRIPT.name),
    }


def wait(poller: "LROPoller[object]", what: str) -> list[str]:
    """Wait for what the service makes, with a sign of life now and then; return why it was not made."""
    from azure.core.exceptions import HttpResponseError

    started = time.monotonic()
    try:
        while not poller.done():
            poller.wait(timing.DEPLOYMENT_POLL)
            say(f"{what}: {poller.status()}, {time.monotonic() - started:.0f} s")
        poller.result()
    except HttpResponseError as error:
        return [reason(error)]
    return []


def _log(client: "MLClient", planned: Deployment) -> list[str]:
    """Return the end of a deployment's log; nothing where its container never started."""
    from azure.core.exceptions import AzureError

    try:
        log = client.online_deployments.get_logs(planned.name, planned.endpoint, lines=LOG_LINES_SHOWN)
    except AzureError:
        return []
    return ["the end of its log:", *(f"    {line}" for line in log.splitlines()[-LOG_LINES_SHOWN:])]


def give_traffic(client: "MLClient", planned: Deployment) -> None:
    """Send every request to the endpoint to the deployment."""
    with explained(f"endpoint {planned.endpoint}"):
        endpoint = client.online_endpoints.get(planned.endpoint)
        if endpoint.traffic != {planned.name: 100}:
            endpoint.traffic = {planned.name: 100}
            put_endpoint(client.online_endpoints, endpoint)


def others(client: "MLClient", planned: Deployment) -> list[str]:
    """Return the names of the endpoint's other deployments, of earlier models."""
    with explained(f"endpoint {planned.endpoint}"):
        names = [each.name for each in client.online_deployments.list(planned.endpoint)]
    return [name for name in names if name != planned.name]


def ask(client: "MLClient", planned: Deployment, request: Json) -> str:
    """Send a request to the deployment, and return its answer."""
    with tempfile.TemporaryDirectory() as folder, explained(f"a request to {planned.endpoint}"):
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        answer: str = client.online_endpoints.invoke(
            planned.endpoint, request_file=str(file), deployment_name=planned.name
        )
    return answer


def removal(planned: Deployment, place: Place) -> str:
    """Return the command that deletes the endpoint."""
    return f"az ml online-endpoint delete --name {planned.endpoint} {place.words}"
