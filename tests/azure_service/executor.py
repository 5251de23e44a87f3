"""Run a job from what the service was sent: the job, the components it names, their code, and the blobs.

python -m tests.azure_service.executor FOLDER

FOLDER has request.json; state.json says how the job and its steps stand. Steps are planned and started by what
`finetune pipeline` uses too (finetune.azure): this is the other front end of that engine.
"""

import json
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow

from finetune.azure import pipeline_yaml, processes, snapshot
from finetune.azure.interface import from_yaml
from finetune.azure.pipeline_yaml import Pipeline, Step
from finetune.azure.plan import Prepared, prepare
from finetune.core.errors import StepError
from finetune.params.schema import Param, to_text
from tests.azure_service.names import logs_of

Json = dict[str, Any]
PARENT_INPUT = re.compile(r"\$\{\{\s*parent\.inputs\.(\w+)\s*\}\}")
JOB_OUTPUT = re.compile(r"\$\{\{\s*parent\.jobs\.(\w+)\.outputs\.(\w+)\s*\}\}")
REFERENCE = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
GROUP = re.compile(r"\$\[\[(.*?)\]\]", re.S)
LINES_TOLD = 30  # of the end of a log, in the error of a job


def main(folder: Path) -> None:
    processes.end_with_this_process()
    request = json.loads((folder / "request.json").read_text())
    state = State(folder)
    try:
        pipeline, given = received(request)
        prepared, faults = prepare(pipeline, given, Path(request["output"]), fill=put_in)
        if faults:
            state.end("Failed", "; ".join(str(fault) for fault in faults))
            return
        run(request, prepared, state)
    except KeyboardInterrupt:
        state.end("Canceled")
    except StepError:
        failed = state.children[-1]
        nodes = f"Pipeline has failed child jobs. Failed nodes: /{failed['node']}. "
        state.end("Failed", failed["error"] if request["job"]["jobType"] == "Command" else nodes + failed["error"])
    except BaseException as error:
        state.end("Failed", f"{type(error).__name__}: {error}")
        raise


class State:
    """state.json: written whole, so that the service never reads half of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = "Running"
        self.error = ""
        self.children: list[Json] = []
        self.write()

    def write(self) -> None:
        part = self.folder / "state.part"
        part.write_text(json.dumps({"status": self.status, "error": self.error, "children": self.children}))
        part.replace(self.folder / "state.json")

    def begin(self, name: str, node: str, command: str, outputs: dict[str, str]) -> Json:
        """Note that a step begins: a child with a name of its own, or the job itself where it is one command."""
        home = self.folder / name
        (home / "code").mkdir(parents=True)
        child = {"name": name, "node": node, "status": "Running", "home": str(home), "command": command, "error": ""}
        self.children.append({**child, "outputs": outputs})
        self.tell(f"{node} has started, run {name}")
        return self.children[-1]

    def tell(self, line: str) -> None:
        """Write a line into the log of the pipeline."""
        with (self.folder / "executionlogs.txt").open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")
        self.write()

    def end(self, status: str, error: str = "") -> None:
        self.status, self.error = status, error
        for child in self.children:
            if child["status"] == "Running":
                child["status"] = status
        self.tell(f"{status} {error}".strip())


def run(request: Json, prepared: list[Prepared], state: State) -> None:
    """Run the steps in order. Raises: StepError with the first that fails."""
    os.environ.pop("PYTHONPATH", None)  # a step has its snapshot alone
    client = mlflow.MlflowClient()
    experiment = request["job"].get("experimentName") or "Default"
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else client.create_experiment(experiment)
    for item in prepared:
        node = item.step.name.rpartition("__")[2]
        name = request["name"] if request["job"]["jobType"] == "Command" else str(uuid.uuid4())
        child = state.begin(name, node, item.command, {name: str(path) for name, path in item.outputs.items()})
        for name, path in item.outputs.items():
            (path.parent if item.step.outputs[name].kind == "uri_file" else path).mkdir(parents=True, exist_ok=True)
        home = Path(child["home"])
        snapshot.copy(item.step.snapshot, home / "code")
        tags = {"mlflow.rootRunId": request["name"], "mlflow.parentRunId": request["name"], "mlflow.runName": node}
        run_id = client.create_run(number, tags=tags).info.run_id
        os.environ |= {"MLFLOW_RUN_ID": run_id, "AZUREML_RUN_ID": child["name"], "MLFLOW_EXPERIMENT_NAME": experiment}
        os.environ["AZUREML_ROOT_RUN_ID"] = request["name"]
        try:
            processes.execute(node, item.command, item.processes, item.world, home, home)
            child["status"] = "Completed"
            client.set_terminated(run_id)
        except StepError as error:
            child["status"], child["error"] = "Failed", error_text(error, home)
            client.set_terminated(run_id, "FAILED")
            raise
        except KeyboardInterrupt:
            child["status"] = "Canceled"
            client.set_terminated(run_id, "KILLED")
            raise
        finally:
            keep_logs(home, Path(request["artifacts"]) / f"dcid.{child['name']}")
        state.tell(f"{node} is {child['status']}")
    state.end("Completed")


def error_text(error: StepError, home: Path) -> str:
    """What Azure ML says of a failed step: its exit code and the end of its log."""
    [fault] = error.faults
    log = Path(fault.where or home / "log.txt")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_TOLD:]
    return f"Execution failed. {fault.what}. Please check log file 'user_logs/std_log.txt'. Error: " + "\n".join(lines)


def keep_logs(home: Path, target: Path) -> None:
    """Put the logs where `jobs.download` looks for them."""
    for name, file in logs_of(home).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)


def put_in(command: str, inputs: dict[str, str | None], outputs: dict[str, str]) -> str:
    """Return the command with its values as Azure ML puts them in: as they are, without quoting.

    A $[[ ]] group goes where a value of it is absent.
    """
    values = {f"inputs.{name}": text for name, text in inputs.items()} | {f"outputs.{n}": t for n, t in outputs.items()}

    def group(match: re.Match[str]) -> str:
        return "" if None in map(values.__getitem__, REFERENCE.findall(match[1])) else match[1]

    return REFERENCE.sub(lambda match: str(values[match[1]]), GROUP.sub(group, command))


# From the job's body to steps


def received(request: Json) -> tuple[Pipeline, dict[str, str]]:
    """Return the job as a pipeline of commands, and the values of its inputs."""
    job = request["job"]
    inputs = {name: job_input(name, entry) for name, entry in (job.get("inputs") or {}).items()}
    given = {name: to_text(entry["value"]) for name, entry in (job.get("inputs") or {}).items()}
    outputs = {name: from_yaml(name, {"type": e["jobOutputType"]}) for name, e in (job.get("outputs") or {}).items()}
    if job["jobType"] == "Command":
        steps = {"command": command_job(request, job, inputs, outputs)}
    else:
        top = {name: f"${{{{parent.inputs.{name}}}}}" for name in inputs}
        exports: dict[tuple[str, str], str] = {}
        own = {name: f"${{{{parent.outputs.{name}}}}}" for name in outputs}
        steps = {step.name: step for step in flattened(request, job["jobs"], top, own, "", exports)}
        for step in steps.values():
            for name, text in step.bound_inputs.items():
                step.bound_inputs[name] = inner_output(text, exports)
    return Pipeline(Path("job"), inputs, outputs, tuple(steps[name] for name in pipeline_yaml.order(steps))), given


def job_input(name: str, entry: Json) -> Param:
    kind = "string" if entry["jobInputType"] == "literal" else entry["jobInputType"]
    return from_yaml(name, {"type": kind, "optional": True})


def flattened(
    request: Json,
    nodes: Json,
    inputs: dict[str, str],
    outputs: dict[str, str],
    prefix: str,
    exports: dict[tuple[str, str], str],
) -> Iterator[Step]:
    """Yield the commands of a pipeline and of those in it.

    `inputs` and `outputs` are what the pipeline's own stand for, outside of it; `exports` is filled with what the
    outputs of its pipeline nodes stand for.
    """
    for name, sent in nodes.items():
        node = one_trial(sent) if sent["type"] == "sweep" else sent
        spec = request["components"][re.sub(r"^.*/(components/.+)$", r"\1", node["componentId"])]
        full = prefix + name
        bound = bindings(node.get("inputs") or {}, inputs, prefix)
        written = {key: str(entry["value"]) for key, entry in (node.get("outputs") or {}).items() if "value" in entry}
        kept = {key: re.sub(r".*outputs\.(\w+).*", r"\1", text) for key, text in written.items()}
        own = {key: outputs[target] for key, target in kept.items() if target in outputs}
        if spec["type"] == "pipeline":
            defaults = {key: to_text(e["default"]) for key, e in (spec.get("inputs") or {}).items() if "default" in e}
            inside = {key: f"${{{{inside.{key}}}}}" for key in spec.get("outputs") or {}} | own
            for step in flattened(request, spec["jobs"], {**defaults, **bound}, inside, f"{full}__", exports):
                for key, text in list(step.bound_outputs.items()):
                    outer = next(name for name, target in inside.items() if target == text)
                    exports[full, outer] = f"${{{{parent.jobs.{step.name}.outputs.{key}}}}}"
                    if text.startswith("${{inside."):
                        del step.bound_outputs[key]
                yield step
        else:
            settings = {key: node[key] for key in ("resources", "distribution") if key in node}
            yield command_step(request, full, spec, bound, own, substituted(settings, inputs))


def one_trial(sweep: Json) -> Json:
    """Return the node of a sweep's trial with the first of the choices, and the smallest of what is loguniform."""
    drawn = {
        name: entry["values"][0] if entry["type"] == "choice" else math.exp(entry["min_value"])
        for name, entry in sweep["search_space"].items()
    }
    return {**sweep, **sweep["trial"], "inputs": {**sweep["inputs"], **drawn}}


def bindings(entries: Json, inputs: dict[str, str], prefix: str) -> dict[str, str]:
    """Return a node's inputs in terms of the whole job; without those that are passed on but have no value."""
    found = {}
    for name, entry in entries.items():
        text = to_text(entry["value"] if isinstance(entry, dict) else entry)
        if match := PARENT_INPUT.fullmatch(text):
            if match[1] in inputs:
                found[name] = inputs[match[1]]
        else:
            found[name] = JOB_OUTPUT.sub(rf"${{{{parent.jobs.{prefix}\1.outputs.\2}}}}", text)
    return found


def substituted(settings: Json, inputs: dict[str, str]) -> Json:
    """Return settings with their references to inputs in terms of the whole job."""
    text = json.dumps(settings)
    found: Json = json.loads(PARENT_INPUT.sub(lambda match: json.dumps(inputs.get(match[1], ""))[1:-1], text))
    return found


def inner_output(text: str, exports: dict[tuple[str, str], str]) -> str:
    """Return an output of a pipeline node as the output of a command in it."""
    while (match := JOB_OUTPUT.fullmatch(text)) and (match[1], match[2]) in exports:
        text = exports[match[1], match[2]]
    return text


def command_step(
    request: Json, name: str, spec: Json, bound: dict[str, str], written: dict[str, str], settings: Json
) -> Step:
    code = re.sub(r"^.*/(codes/.+)$", r"\1", spec.get("code") or "")
    return Step(
        name=name,
        component=spec,
        inputs={key: from_yaml(key, numbered(entry)) for key, entry in (spec.get("inputs") or {}).items()},
        outputs={key: from_yaml(key, entry) for key, entry in (spec.get("outputs") or {}).items()},
        bound_inputs=bound,
        bound_outputs=written,
        settings=settings,
        snapshot=snapshot.tree(Path(request["code"][code])) if code else {},
    )


def numbered(entry: Json) -> Json:
    """Return an input's declaration with bounds that are numbers: they are received as text."""
    return {key: float(value) if key in ("min", "max") else value for key, value in entry.items()}


def command_job(request: Json, job: Json, inputs: dict[str, Param], outputs: dict[str, Param]) -> Step:
    """Return a job that is one command, without a component."""
    counts = {
        "resources": {"instance_count": (job.get("resources") or {}).get("instanceCount", 1)},
        "distribution": {
            "process_count_per_instance": (job.get("distribution") or {}).get("processCountPerInstance") or 1
        },
    }
    spec = {"command": job["command"], "code": job.get("codeId"), **counts}
    spec["inputs"] = {name: {"type": p.kind, "optional": True} for name, p in inputs.items()}
    spec["outputs"] = {name: {"type": p.kind} for name, p in outputs.items()}
    bound = {name: f"${{{{parent.inputs.{name}}}}}" for name in inputs}
    return command_step(request, "command", spec, bound, {n: f"${{{{parent.outputs.{n}}}}}" for n in outputs}, {})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
