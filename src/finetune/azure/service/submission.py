"""A pipeline YAML as a job of Azure ML: built, sent, followed, and its outputs brought here."""

import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.azure.pipeline_yaml import Pipeline, unfit_for_azure
from finetune.azure.plan import pipeline_inputs
from finetune.azure.processes import LOG_LINES_SHOWN
from finetune.azure.service.connection import explained, require_azure, require_compute
from finetune.core import timing
from finetune.core.console import say
from finetune.core.errors import Fault, ParameterError, StepError
from finetune.core.outputs import Output, bring_in, clear
from finetune.params.schema import LOCAL_OR_HUB, to_text

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Job, PipelineJob

ELSEWHERE = ("azureml:", "https://", "wasbs://", "abfss://")  # addresses that Azure ML reads itself
SERVERLESS = "serverless"
_ENDED = ("Completed", "Failed", "Canceled")


def settle_inputs(pipeline: Pipeline, values: Mapping[str, str], compute: str = SERVERLESS) -> dict[str, str]:
    """Return what the job is given: the values, and the compute for each step that has none.

    Raises: ParameterError, with everything that is unknown, wrong, not there, or that Azure ML would not carry.
    """
    steps = {name: compute for name in pipeline.inputs if name.startswith("compute_")}
    given = {**(steps if compute != SERVERLESS else {}), **values}
    texts, faults = pipeline_inputs(pipeline, given, ELSEWHERE)
    for name in LOCAL_OR_HUB:
        if name in given and Path(given[name]).is_dir():
            why = "a job on Azure ML has no folder of this machine, but for inputs that are files and folders"
            faults.append(Fault(f"--set {name}={given[name]} is a folder of this machine", why=why, fix=_FILES[name]))
    faults += unfit_for_azure(pipeline, given)
    if faults:
        raise ParameterError(*faults)
    return {name: str(texts[name]) for name in given}


_FILES = {"huggingface_id": "--set pytorch_model_path=FOLDER", "dataset_name": "--set train_file_path=FILE"}


def build(
    pipeline: Pipeline, inputs: Mapping[str, str], compute: str = SERVERLESS, experiment: str = ""
) -> "PipelineJob":
    """Return azure-ai-ml's job of the pipeline; nothing is sent. `inputs` are those of settle_inputs."""
    require_azure()
    from azure.ai.ml import Input, dsl, load_component

    values: dict[str, object] = {}
    for name, text in inputs.items():
        p = pipeline.inputs[name]
        values[name] = Input(type=p.kind, path=text) if p.is_port else p.convert(text)
        if p.kind == "boolean":  # Azure ML knows it as a string with two values
            values[name] = to_text(values[name])
    component = load_component(pipeline.path)

    # PipelineJob(component=…) would send a job without steps, of a component that has to be looked up.
    @dsl.pipeline(display_name=component.display_name, default_compute=compute)  # type: ignore[untyped-decorator]
    def job() -> dict[str, object]:
        step = component(**values)
        step.name = component.name
        return {name: step.outputs[name] for name in pipeline.outputs}

    built = job()
    # azure-ai-ml draws a name from `random`: after the same seed, that of an earlier job.
    built.name = f"{component.name}_{secrets.token_hex(5)}"
    built.experiment_name = experiment or pipeline.path.resolve().parent.name
    for name in pipeline.outputs:
        built.outputs[name].mode = "rw_mount"
    return built


def send(client: "MLClient", job: "PipelineJob", inputs: Mapping[str, str]) -> "Job":
    """Send the job, and return what Azure ML calls it. Raises: ParameterError for a compute that isn't there."""
    computes = {text for name, text in inputs.items() if name.startswith("compute_")} | {job.settings.default_compute}
    for name in sorted({text.removeprefix("azureml:") for text in computes} - {SERVERLESS}):
        require_compute(client, name)
    with explained("submitting"):
        return client.jobs.create_or_update(job)


def follow(client: "MLClient", name: str) -> None:
    """Show the run until it has ended. Raises: StepError, with the end of each failed step's log, if it has failed."""
    from azure.ai.ml.exceptions import JobException

    why = ""
    with explained(f"following {name}"):
        try:
            client.jobs.stream(name)
        except JobException as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                where = f"--resource-group {client.resource_group_name} --workspace-name {client.workspace_name}"
                say(f"the run goes on; to end it: az ml job cancel --name {name} {where}")
                raise KeyboardInterrupt from None
            why = _message(str(error))
        job = _ended(client, name)
        if job.status == "Completed":
            return
        failed = [_step_fault(client, child) for child in _failed_steps(client, name)]
    fix = "mend that and submit again: Azure ML runs no step again that has not changed"
    raise StepError(*failed, Fault(f"the run {name} {str.lower(job.status)}", str(job.studio_url), why, fix))


def _ended(client: "MLClient", name: str) -> "Job":
    """Return the job once Azure ML says that it has ended, which its log can be ahead of."""
    until = time.monotonic() + timing.JOB_SETTLED
    job = client.jobs.get(name)
    while job.status not in _ENDED and time.monotonic() < until:
        time.sleep(timing.JOB_POLL)
        job = client.jobs.get(name)
    return job


def _message(text: str) -> str:
    """Return the message in what azure-ai-ml says of a failed run: a word, and the service's JSON."""
    try:
        error = json.loads(text[text.index("{") : text.rindex("}") + 1])["error"]
        return str(error["message"])
    except (ValueError, LookupError, TypeError):
        return text


def _failed_steps(client: "MLClient", name: str) -> list["Job"]:
    """Return the steps that failed; of a pipeline in the pipeline those in it."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        children = [child for child in client.jobs.list(parent_job_name=name) if child is not None]
    except ResourceNotFoundError:  # a step that has no children
        return []
    failed = [child for child in children if child.status == "Failed"]
    return [step for child in failed for step in _failed_steps(client, child.name) or [child]]


def _step_fault(client: "MLClient", child: "Job") -> Fault:
    from azure.core.exceptions import AzureError

    why = ""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(AzureError):  # a step may end without a log
        client.jobs.download(child.name, download_path=folder)
        logs = sorted(Path(folder).rglob("std_log*.txt"))
        lines = [line for log in logs[:1] for line in log.read_text(errors="replace").splitlines() if line.strip()]
        why = "\n".join(["the end of its log:", *(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])]) if lines else ""
    return Fault(f"{child.display_name or child.name} failed", str(child.studio_url), why)


def download(client: "MLClient", name: str, output: Output) -> None:
    """Bring a run's outputs into a claimed folder, in place of what an earlier download left there."""
    with tempfile.TemporaryDirectory(prefix=".download-", dir=output.folder) as staged, explained("downloading"):
        for pattern in output.names:
            port = pattern.removesuffix("/")
            say(f"downloading {port}")
            client.jobs.download(name, download_path=staged, output_name=port)
        clear(output.folder, output.names)
        bring_in(Path(staged) / "named-outputs", output.folder)
