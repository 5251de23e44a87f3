"""Components that only write down what they were given: the service is tried on them in seconds."""

from pathlib import Path
from typing import Any

import yaml

# How it behaves is told by the text that it is given.
CODE = """
import json, os, sys, time
from pathlib import Path

words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out, rank = Path(words["--out"]), os.environ["RANK"]
print(f"rank {rank} is here", flush=True)
names = ("RANK", "WORLD_SIZE", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "AZUREML_ROOT_RUN_ID", "PYTHONPATH")
env = {name: os.environ.get(name) for name in names}
files = sorted(str(path) for path in Path().rglob("*") if path.is_file())
(out / f"seen.{rank}.json").write_text(json.dumps({"words": words, "env": env, "files": files, "pid": os.getpid()}))
if words.get("--text") == "fail":
    sys.exit("data error: row 3 has no answer")
if words.get("--text") == "wait":
    time.sleep(60)
"""
INPUTS: dict[str, Any] = {
    "text": {"type": "string"},
    "size": {"type": "integer", "optional": True, "min": 0},
    "rate": {"type": "number", "optional": True, "default": 0.5},
    "note": {"type": "string", "optional": True},
    "data": {"type": "uri_file", "optional": True},
}
ENVIRONMENT = {"image": "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest"}


def write_component(folder: Path, name: str, inputs: dict[str, Any] = INPUTS, **more: Any) -> Path:
    """Write NAME.yaml and the folder `code`; each value stands in single quotes, as ours do."""
    groups = " ".join(f"$[[--{key} '${{{{inputs.{key}}}}}']]" for key in inputs)
    spec = {
        "type": "command",
        "name": name,
        "version": "1",
        "inputs": inputs,
        "outputs": {"out": {"type": "uri_folder"}},
        "code": "./code",
        "environment": ENVIRONMENT,
        "command": f"python step.py {groups} --out '${{{{outputs.out}}}}'",
        **more,
    }
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "step.py").write_text(CODE, encoding="utf-8")
    return write_yaml(folder / f"{name}.yaml", spec)


def write_pipeline(folder: Path) -> Path:
    """Write pipeline.yaml: `first` hands its output to `second`, which runs as `processes` processes."""
    write_component(folder, "first")
    write_component(folder, "second", {"text": {"type": "string"}, "folder": {"type": "uri_folder"}})
    passed = ("text", "size", "rate", "note", "data")
    second = {
        "type": "command",
        "component": "file:./second.yaml",
        "inputs": {"text": "${{parent.inputs.text_of_second}}", "folder": "${{parent.jobs.one.outputs.out}}"},
        "outputs": {"out": "${{parent.outputs.result}}"},
        "distribution": {"type": "pytorch", "process_count_per_instance": "${{parent.inputs.processes}}"},
    }
    first = {
        "type": "command",
        "component": "file:./first.yaml",
        "inputs": {name: f"${{{{parent.inputs.{name}}}}}" for name in passed},
    }
    own = {"text_of_second": {"type": "string", "default": "x"}, "processes": {"type": "integer", "default": 1}}
    spec = {
        "type": "pipeline",
        "name": "two_steps",
        "version": "1",
        "inputs": {**INPUTS, **own},
        "outputs": {"result": {"type": "uri_folder"}},
        "jobs": {"one": first, "two": second},
    }
    return write_yaml(folder / "pipeline.yaml", spec)


def write_yaml(path: Path, value: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path
