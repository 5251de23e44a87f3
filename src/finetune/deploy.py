"""Serve a finetuned model from a managed online endpoint of Azure ML, and ask it once; or from a batch endpoint.

    finetune deploy azureml://jobs/JOB/outputs/mlflow_model_folder --endpoint NAME
    finetune deploy azureml://jobs/JOB/outputs/mlflow_model_folder --endpoint NAME --batch --compute CLUSTER

The model is an MLflow model, which Azure ML serves without a scoring script or an environment; with --cpu-image there
are both, of ours.
"""

import json
from typing import TYPE_CHECKING

from finetune.azure.service import batch, connection, deployment
from finetune.azure.words import Line, read_line
from finetune.core.console import say, start
from finetune.core.errors import Fault, ParameterError
from finetune.core.process import run_main
from finetune.core.types import Json

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

USAGE = f"""usage: finetune deploy MODEL --endpoint NAME [--cpu-image | --batch] [--name NAME] [--dry-run]

Registers a model, makes an endpoint and a deployment of it, and sends the model's own example as a request. What is
there already is said and left alone.

MODEL            mlflow_model_folder of a run: azureml://jobs/JOB/outputs/mlflow_model_folder, or a folder here
--endpoint NAME  the endpoint; its name is one of the whole Azure region
--name NAME      the model; {{name}} if left out
--instance-type TYPE
                 the machine; {{instance}} if left out
--cpu-image      serve it from environments/serving, an image without CUDA, instead of what Azure ML builds of the
                 model's conda.yaml
--batch          a batch endpoint instead, whose jobs answer the rows of CSV files; nothing is asked
--compute NAME   with --batch: the cluster that runs these jobs
--dry-run        check names and folder and say what would be made; nothing is asked or sent
{connection.USAGE}"""
NAME, INSTANCE = "finetuned", "Standard_DS3_v2"
OPTIONS = (*connection.WORKSPACE, "--endpoint", "--name", "--instance-type", "--compute")
BATCH, CPU_IMAGE = "--batch", "--cpu-image"


def main(argv: list[str]) -> None:
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE.format(name=NAME, instance=INSTANCE), end="")
        return
    line, place = read_words(argv)
    given = line.options
    machine = given["--compute"] if BATCH in line.flags else given.get("--instance-type", INSTANCE)
    name, own_image = given.get("--name", NAME), CPU_IMAGE in line.flags
    planned = deployment.plan(line.words[0], name, given["--endpoint"], machine, own_image)
    start("deploy")
    if "--dry-run" in line.flags:
        say(f"model       {planned.model}, version {planned.version}, from {planned.source}")
        kind = "batch endpoint" if BATCH in line.flags else "endpoint"
        say(f"{kind:10}  {planned.endpoint}\ndeployment  {planned.name} on {planned.machine}")
        if planned.image:
            say(f"environment finetune-serving, version {planned.image}")
        return
    client, place = connection.connect(place)
    say(str(place))
    if BATCH in line.flags:
        connection.require_compute(client, planned.machine)
    request = deployment.find_request(client, planned)
    say(f"model {planned.model}, version {planned.version}: {state(deployment.register_model(client, planned))}")
    if BATCH in line.flags:
        serve_files(client, planned, place, request)
    else:
        serve_requests(client, planned, place, request)


def serve_files(client: "MLClient", planned: deployment.Deployment, place: connection.Place, request: Json) -> None:
    """Make the batch endpoint and its deployment, and say how it is used."""
    from finetune.results.limits import SERVING_CONFIG, UNLIMITED

    say(f"batch endpoint {planned.endpoint}: {state(batch.make_endpoint(client, planned))}")
    unlimited = {SERVING_CONFIG: json.dumps(UNLIMITED)}  # a file is no request, which may come from anybody
    say(f"deployment {planned.name}: {state(batch.make_deployment(client, planned, unlimited))}")
    batch.make_default(client, planned)
    say(f"FOLDER has CSV files with the columns {', '.join(request['input_data']['columns'])}; others are left alone")
    for command in batch.usage(planned, place):
        say(command)


def serve_requests(client: "MLClient", planned: deployment.Deployment, place: connection.Place, request: Json) -> None:
    """Make the endpoint and its deployment, and ask it."""
    say(f"endpoint {planned.endpoint}: {state(deployment.make_endpoint(client, planned))}")
    say(f"deployment {planned.name}: {state(deployment.make_deployment(client, planned))}")
    deployment.give_traffic(client, planned)
    say(f"request     {json.dumps(request, ensure_ascii=False)}")
    say(f"answer      {deployment.ask(client, planned, request)}")
    for other in deployment.others(client, planned):
        say(f"note: deployment {other} of the endpoint is left as it was, and gets no requests")
    say(f"it costs until it is deleted: {deployment.removal(planned, place)}")


def state(new: bool) -> str:
    """Return the word for what was made, or was there."""
    return "new" if new else "there"


def read_words(argv: list[str]) -> tuple[Line, connection.Place]:
    """Return the command line read, and the workspace that it names. Raises: ParameterError if it is wrong."""
    line, faults = read_line(argv, OPTIONS, ("--dry-run", BATCH, CPU_IMAGE))
    place, wrong = connection.find_place(line.options)
    faults += [*(Fault(f"unexpected word {word!r}") for word in line.words[1:]), *wrong]
    if not line.words:
        faults.append(Fault("no model is given", fix="finetune deploy azureml://jobs/JOB/outputs/mlflow_model_folder"))
    if "--endpoint" not in line.options and "--endpoint" not in argv:
        faults.append(Fault("--endpoint is missing", why="a name of the whole Azure region", fix="--endpoint NAME"))
    faults += machine_faults(line)
    if faults:
        raise ParameterError(*faults)
    return line, place


def machine_faults(line: Line) -> list[Fault]:
    """Return what is wrong with the machine that is named: each kind of endpoint has another."""
    if BATCH not in line.flags:
        return [Fault("--compute is for batch endpoints", fix="--instance-type TYPE")] * ("--compute" in line.options)
    faults = []
    if CPU_IMAGE in line.flags:
        faults.append(Fault("--cpu-image is for online endpoints", fix="--batch without it"))
    if "--instance-type" in line.options:
        faults.append(Fault("--instance-type is for online endpoints", why="a cluster has a type of its own"))
    if "--compute" not in line.options:
        fix = "--compute NAME; az ml compute create --name NAME --type amlcompute --size Standard_DS3_v2"
        faults.append(Fault("--compute is missing", why="the jobs of a batch endpoint run on a cluster", fix=fix))
    return faults


if __name__ == "__main__":
    run_main(main)
