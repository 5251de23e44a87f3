"""Plan every step of a pipeline component YAML and a command line: its command, its folders and its processes."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune.azure import snapshot
from finetune.azure.pipeline_yaml import Pipeline, Step, fill_command, needs, parent_output, resolve
from finetune.azure.words import read_line
from finetune.core.errors import Fault, ParameterError
from finetune.core.outputs import overlaps
from finetune.core.paths import LOST, is_lost
from finetune.core.types import Json
from finetune.params.schema import LOCAL_OR_HUB, as_shown, did_you_mean, missing, no_path

USAGE = """usage: finetune pipeline FILE --output FOLDER [--set NAME=VALUE ...] [--force]

FILE             a pipeline component YAML
--output FOLDER  where everything is written; run again with the same folder to skip finished steps
--set NAME=VALUE an input of the pipeline; --set may be repeated, or take several
--force          run every step, finished or not
"""

MOST_PROCESSES = 100_000


@dataclass(frozen=True)
class Words:
    """The command line of the runner."""

    file: Path
    output: Path
    values: dict[str, str]
    force: bool


def read_words(argv: list[str], output: Path | None = None) -> Words:
    """Return the command line read; `output` is the folder if --output isn't given. Raises: ParameterError if wrong."""
    line, faults = read_line(argv, ("--output",), ("--force",), values=True)
    faults += [Fault(f"unexpected word {word!r}", fix="--set NAME=VALUE") for word in line.words[1:]]
    file = line.words[0] if line.words else None
    output = Path(line.options["--output"]) if "--output" in line.options else output
    if file is None:
        faults.append(Fault("no pipeline file is given", fix="finetune pipeline FILE --output FOLDER"))
    if output is None:
        faults.append(Fault("--output is missing", fix="--output out"))
    named = [str(path) for path in (file, output) if path is not None]
    faults += [Fault(f"the path {path!r} {why}") for path in named if (why := no_path(path))]
    faults += [Fault(f"{path} {LOST}") for path in named if is_lost(path)]
    if faults or file is None or output is None:
        raise ParameterError(*faults)
    return Words(Path(file), real(output), line.values, bool(line.flags))


def real(path: str | Path) -> Path:
    """Return the absolute path behind links, where they don't go in a circle."""
    return Path(os.path.realpath(path))


def pipeline_inputs(
    pipeline: Pipeline, values: dict[str, str], elsewhere: tuple[str, ...] = ()
) -> tuple[dict[str, str | None], list[Fault]]:
    """Return each input's value as text, paths made absolute, None where an optional one has none; and the faults.

    What begins like one of `elsewhere` is a place that isn't on this machine, and is left as it is.
    """
    faults = []
    texts = {name: p.default_text for name, p in pipeline.inputs.items()}
    for name, text in values.items():
        if name not in pipeline.inputs:
            faults.append(Fault(f"the pipeline has no input {name!r}{did_you_mean(name, list(pipeline.inputs))}"))
            continue
        try:
            pipeline.inputs[name].convert(text)
        except ValueError as error:
            faults.append(Fault(f"--set {name}={as_shown(name, text)} {error}"))
            continue
        texts[name] = text
        if text.startswith(elsewhere):
            continue
        if pipeline.inputs[name].is_port or (name in LOCAL_OR_HUB and Path(text).is_dir()):
            texts[name] = str(real(text))
        if lost := missing(pipeline.inputs[name], text, f"--set {name}="):
            faults.append(lost)
    for name, p in pipeline.inputs.items():
        if p.required and texts[name] is None:
            faults.append(Fault(f"input {name} is missing", why=p.doc, fix=f"--set {name}=<{p.kind}>"))
    return texts, faults


Fill = Callable[[str, dict[str, str | None], dict[str, str]], str]  # a command, its inputs and its outputs


@dataclass(frozen=True)
class Prepared:
    """A step with every value put in."""

    step: Step
    command: str
    outputs: dict[str, Path]
    processes: int  # on each machine
    world: int  # on all
    key: str  # equal where nothing that the step depends on has changed


def prepare(
    pipeline: Pipeline, given: dict[str, str], output: Path, fill: Fill = fill_command
) -> tuple[list[Prepared], list[Fault]]:
    """Return every step's command, with its values put in by `fill`, outputs and key; and the faults of the values."""
    inputs, faults = pipeline_inputs(pipeline, given)
    if output.exists() and not output.is_dir():
        faults.append(Fault(f"{output} is not a folder", fix="--output with another name"))
    external = {f"--set {name}": Path(text) for name, text in inputs.items() if text and _is_path(pipeline, name, text)}
    faults += overlaps(external, {"--output": output})
    folders = {(s.name, name): output_path(output, s, name) for s in pipeline.steps for name in s.outputs}
    keys: dict[str, str] = {}
    prepared = []
    for step in pipeline.steps:
        values = {name: p.default_text for name, p in step.inputs.items()}
        for name, text in step.bound_inputs.items():
            value = resolve(text, inputs, folders)
            if value is not None:
                values[name] = value
                try:
                    step.inputs[name].convert(value)
                except ValueError as error:
                    what = f"{name} {as_shown(name, value)!r} {error}"
                    faults.append(Fault(what, where=f"{pipeline.path.name}, {step.name}"))
        outputs = {name: folders[step.name, name] for name in step.outputs}
        command = fill(step.component["command"], values, {name: str(path) for name, path in outputs.items()})
        nodes, on_each = process_counts(step, inputs)
        depends = [
            command,
            snapshot.digest(step.snapshot),
            nodes,
            on_each,
            *(keys[name] for name in sorted(needs(step))),
        ]
        keys[step.name] = hashlib.sha256(json.dumps([*depends, *input_digests(step, values)]).encode()).hexdigest()
        prepared.append(Prepared(step, command, outputs, on_each, nodes * on_each, keys[step.name]))
    return prepared, faults


def _is_path(pipeline: Pipeline, name: str, text: str) -> bool:
    return pipeline.inputs[name].is_port or (name in LOCAL_OR_HUB and Path(text).is_dir())


def output_path(output: Path, step: Step, name: str) -> Path:
    """Return where a step's output lies: under the pipeline output that it is bound to, else in the step's folder."""
    bound = parent_output(step.bound_outputs.get(name, ""))
    return output / bound if bound else output / "steps" / step.name / name


def process_counts(step: Step, inputs: dict[str, str | None]) -> tuple[int, int]:
    """Return the machines and the processes on each, from the job's or the component's resources and distribution."""
    resources = {**(step.component.get("resources") or {}), **(step.settings.get("resources") or {})}
    distribution = {**(step.component.get("distribution") or {}), **(step.settings.get("distribution") or {})}

    def count(block: Json, key: str) -> int:
        text = resolve(str(block.get(key, 1)), inputs, {}) or "1"
        if not (text.isdecimal() and len(text) <= len(str(MOST_PROCESSES))):
            fix = f"a whole number below {10 * MOST_PROCESSES:,}"
            raise ParameterError(Fault(f"{step.name} has {key} {text}", why="it counts processes", fix=fix))
        return max(1, int(text))

    return count(resources, "instance_count"), count(distribution, "process_count_per_instance")


def input_digests(step: Step, values: dict[str, str | None]) -> list[str]:
    """Return a digest of each file or folder handed in from outside the pipeline."""
    from_steps = {name for name, text in step.bound_inputs.items() if ".jobs." in text}
    ports = [name for name, p in step.inputs.items() if p.is_port and name not in from_steps]
    return [snapshot.digest(snapshot.tree(Path(str(values[name])))) for name in ports if values[name] is not None]
