"""Serve a finetuned model from a managed online endpoint of Azure ML, and ask it once.

    finetune deploy azureml://jobs/JOB/outputs/mlflow_model_folder --endpoint NAME

The model is an MLflow model, which Azure ML serves without a scoring script or an environment.
"""

import json

from finetune.azure.service import connection, deployment
from finetune.azure.words import Line, read_line
from finetune.core.console import say, start
from finetune.core.errors import Fault, ParameterError
from finetune.core.process import run_main

USAGE = f"""usage: finetune deploy MODEL --endpoint NAME [--name NAME] [--workspace NAME ...] [--dry-run]

Registers a model, makes an endpoint and a deployment of it, and sends the model's own example as a request. What is
there already is said and left alone.

MODEL            mlflow_model_folder of a run: azureml://jobs/JOB/outputs/mlflow_model_folder, or a folder here
--endpoint NAME  the endpoint; its name is one of the whole Azure region
--name NAME      the model; {{name}} if left out
--instance-type TYPE
                 the machine; {{instance}} if left out
--dry-run        check names and folder and say what would be made; nothing is asked or sent
{connection.USAGE}"""
NAME, INSTANCE = "finetuned", "Standard_DS3_v2"
OPTIONS = (*connection.WORKSPACE, "--endpoint", "--name", "--instance-type")


def main(argv: list[str]) -> None:
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE.format(name=NAME, instance=INSTANCE), end="")
        return
    line, place = read_words(argv)
    given = line.options
    planned = deployment.plan(
        line.words[0], given.get("--name", NAME), given["--endpoint"], given.get("--instance-type", INSTANCE)
    )
    start("deploy")
    if "--dry-run" in line.flags:
        say(f"model       {planned.model}, version {planned.version}, from {planned.source}")
        say(f"endpoint    {planned.endpoint}\ndeployment  {planned.name} on {planned.instance_type}")
        return
    client, place = connection.connect(place)
    say(str(place))
    request = deployment.find_request(client, planned)
    say(f"model {planned.model}, version {planned.version}: {state(deployment.register_model(client, planned))}")
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
    line, faults = read_line(argv, OPTIONS, ("--dry-run",))
    place, wrong = connection.find_place(line.options)
    faults += [*(Fault(f"unexpected word {word!r}") for word in line.words[1:]), *wrong]
    if not line.words:
        faults.append(Fault("no model is given", fix="finetune deploy azureml://jobs/JOB/outputs/mlflow_model_folder"))
    if "--endpoint" not in line.options and "--endpoint" not in argv:
        faults.append(Fault("--endpoint is missing", why="a name of the whole Azure region", fix="--endpoint NAME"))
    if faults:
        raise ParameterError(*faults)
    return line, place


if __name__ == "__main__":
    run_main(main)
