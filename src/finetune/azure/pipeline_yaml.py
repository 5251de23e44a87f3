"""Read a pipeline component YAML as steps, with every binding checked.

azure-ai-ml accepts a wrong parent input, job name, job output or child input, a mismatch of types and a cycle without
a word; here each is a fault, and all of them are reported at once.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Required, TypedDict

from finetune.azure import quoting, snapshot
from finetune.azure.interface import Entry, Scalar, from_yaml
from finetune.core.errors import Fault, ParameterError
from finetune.core.reading import Unreadable, misfit, no_file, yaml_mapping
from finetune.core.types import Json
from finetune.params.schema import Param, as_shown, did_you_mean, to_text

_PARENT_INPUT = re.compile(r"\$\{\{\s*parent\.inputs\.(\w+)\s*\}\}")
_PARENT_OUTPUT = re.compile(r"\$\{\{\s*parent\.outputs\.(\w+)\s*\}\}")
_JOB_OUTPUT = re.compile(r"\$\{\{\s*parent\.jobs\.(\w+)\.outputs\.(\w+)\s*\}\}")
# No two parts of a pattern may take the same character, or it would look at a long text again and again. (Possessive
# ones would do as well, but Python 3.11 had them wrong up to 3.11.4.)
_REFERENCE = re.compile(r"\$\{\{([^{}]*)\}\}")  # any, in a command
_GROUP = re.compile(r"\$\[\[((?:[^$\]]|\$(?!\[\[)|\](?!\]))*)\]\]")
# kind of a source -> kinds of inputs that take it, besides its own
_TAKEN_BY: dict[str, tuple[str, ...]] = {
    "integer": ("number", "string"),
    "number": ("string",),
    "boolean": ("string",),
    "uri_folder": ("custom_model",),
    "custom_model": ("uri_folder",),
    "mlflow_model": ("uri_folder", "custom_model"),
    "mltable": ("uri_folder",),
}


class _Job(TypedDict, total=False):
    """A job of a pipeline YAML, as far as it is read here."""

    component: Required[str]
    inputs: dict[str, Scalar] | None
    outputs: dict[str, str] | None
    compute: str
    resources: Json | None
    distribution: Json | None


class _PipelineYaml(TypedDict, total=False):
    inputs: dict[str, Entry] | None
    outputs: dict[str, Entry] | None
    jobs: dict[str, _Job] | None


class _CommandYaml(TypedDict, total=False):
    command: str
    code: str
    additional_includes: list[str] | None
    inputs: dict[str, Entry] | None
    outputs: dict[str, Entry] | None
    resources: Json | None
    distribution: Json | None
    is_deterministic: bool


@dataclass(frozen=True)
class Step:
    """A step: one job of the pipeline and its component."""

    name: str
    component: Json
    inputs: dict[str, Param]
    outputs: dict[str, Param]
    bound_inputs: dict[str, str]
    bound_outputs: dict[str, str]
    settings: Json  # compute, resources, distribution
    snapshot: snapshot.Snapshot


@dataclass(frozen=True)
class Pipeline:
    """A pipeline component."""

    path: Path
    inputs: dict[str, Param]
    outputs: dict[str, Param]
    steps: tuple[Step, ...]  # in an order in which they can run


def load_pipeline(path: Path) -> Pipeline:
    """Return the pipeline in a YAML. Raises: ParameterError, with every fault of every component and binding."""
    spec = _read(path, _PipelineYaml)
    inputs, outputs = _params(spec.get("inputs")), _params(spec.get("outputs"))
    jobs = dict(spec.get("jobs") or {})
    broken: list[Fault] = []
    steps: dict[str, Step] = {}
    for name, job in jobs.items():
        try:
            steps[name] = _step(path, name, job)
        except ParameterError as error:
            broken += [Fault(f.what, f.where or f"{path.name}, {name}", f.why, f.fix) for f in error.faults]
    faults = broken + [
        Fault(what, where=f"{path.name}, {where}") for where, what in _faults(inputs, outputs, steps, set(jobs))
    ]
    defaults = {name: p.default_text for name, p in inputs.items()}
    faults += unfit_for_azure(Pipeline(path, inputs, outputs, tuple(steps.values())), defaults)
    if not jobs:
        faults.append(Fault(f"{path} has no jobs", fix="give a YAML of `type: pipeline`"))
    if faults:
        raise ParameterError(*faults)
    return Pipeline(path, inputs, outputs, tuple(steps[name] for name in order(steps)))


def _read(path: Path, kind: type) -> Json:
    """Return what a component YAML holds. Raises: ParameterError if it isn't of the kind, a TypedDict."""
    if why := no_file(path):
        raise ParameterError(Fault(f"{path} {why}", fix="give the path of a component YAML"))
    try:
        spec = yaml_mapping(path)
    except Unreadable as reason:
        raise ParameterError(Fault(f"{path} is not a component", why=str(reason))) from None
    if why := misfit(spec, kind, "it"):
        raise ParameterError(Fault(f"{path} is not a component", why=why))
    return spec


def _params(entries: Json | None) -> dict[str, Param]:
    return {name: from_yaml(name, entry) for name, entry in (entries or {}).items()}


def _step(pipeline: Path, name: str, job: Json) -> Step:
    path = snapshot.beside(pipeline, job["component"].removeprefix("file:"))
    component = _read(path, _CommandYaml)
    if "command" not in component:
        raise ParameterError(Fault(f"{path} has no command", fix="give a YAML of `type: command`"))
    return Step(
        name=name,
        component=component,
        inputs=_params(component.get("inputs")),
        outputs=_params(component.get("outputs")),
        bound_inputs={key: to_text(value) for key, value in (job.get("inputs") or {}).items()},
        bound_outputs={key: to_text(value) for key, value in (job.get("outputs") or {}).items()},
        settings={key: job[key] for key in ("compute", "resources", "distribution") if key in job},
        snapshot=snapshot.of_component(path, component),
    )


def _faults(
    inputs: dict[str, Param], outputs: dict[str, Param], steps: dict[str, Step], jobs: set[str]
) -> Iterator[tuple[str, str]]:
    """Yield where and what, of every binding that can't work. `jobs` has the names of broken steps too."""
    for step in steps.values():
        for name, text in step.bound_inputs.items():
            where = f"{step.name}.inputs.{name}"
            if name not in step.inputs:
                yield where, f"the component has no input {name!r}{did_you_mean(name, list(step.inputs))}"
            else:
                yield from ((where, what) for what in _input_faults(step.inputs[name], text, inputs, steps, jobs))
        for name, param in step.inputs.items():
            if param.required and name not in step.bound_inputs:
                yield f"{step.name}.inputs", f"required input {name!r} is not bound"
        for name, text in step.bound_outputs.items():
            yield from ((f"{step.name}.outputs.{name}", what) for what in _output_faults(step, name, text, outputs))
        yield from ((f"{step.name}.command", what) for what in _command_faults(step))
        for name in _PARENT_INPUT.findall(str(step.settings)):
            if name not in inputs:
                yield step.name, f"the pipeline has no input {name!r}{did_you_mean(name, list(inputs))}"
    bound = [
        name for step in steps.values() for text in step.bound_outputs.values() for name in _PARENT_OUTPUT.findall(text)
    ]
    for name in outputs:
        if bound.count(name) != 1:
            yield f"outputs.{name}", "no job writes it" if name not in bound else "several jobs write it"
    try:
        order(steps)
    except CycleError as error:
        yield "jobs", f"they wait for each other: {' -> '.join(error.args[1])}"


def unfit_for_azure(pipeline: Pipeline, given: Mapping[str, str | None]) -> list[Fault]:
    """Return a fault for each value that would not be itself in the quotes in which a command has it.

    Azure ML puts values in as they are. `given` are values of the pipeline's inputs.
    """
    faults = []
    for step in pipeline.steps:
        for reference in quoting.references(_GROUP.sub(r"\1", step.component["command"])):
            name = reference.name.removeprefix("inputs.")
            if name not in step.inputs:
                continue
            shown, value = _known_value(step, step.inputs[name], given)
            if signs := quoting.read_otherwise(value, reference.place):
                what = f"{shown}: {as_shown(name, value)!r} can't be given to {step.name} by Azure ML"
                why = f"it is put into the command as it is, between {reference.place}, where a shell reads {signs}"
                faults.append(Fault(what, where=pipeline.path.name, why=why, fix=f"a value without {' '.join(signs)}"))
    return list(dict.fromkeys(faults))


def _known_value(step: Step, param: Param, given: Mapping[str, str | None]) -> tuple[str, str]:
    """Return where a step's input has its value from, and the value as Azure ML puts it in; '' if that isn't known.

    A folder's path is Azure ML's own, and a file keeps its name.
    """
    text = step.bound_inputs.get(param.name)
    match = _PARENT_INPUT.fullmatch(text or "")
    value = given.get(match[1]) if match else param.default_text if text is None else text
    shown = match[1] if match else f"{step.name}.inputs.{param.name}"
    if value is None or "${{" in value or (param.is_port and param.kind != "uri_file"):
        return shown, ""
    return shown, Path(value).name if param.is_port else value


def _command_faults(step: Step) -> Iterator[str]:
    command = step.component["command"]
    known = {f"inputs.{name}" for name in step.inputs} | {f"outputs.{name}" for name in step.outputs}
    for name in _references(command):
        if name not in known:
            yield f"${{{{{name}}}}} is not an input or output of the component{did_you_mean(name, sorted(known))}"
    for reference in quoting.references(_GROUP.sub(r"\1", command)):
        if reference.place == "refused":
            yield f"${{{{{reference.name}}}}} {quoting.REFUSED}"
    outside = _references(_GROUP.sub("", command))
    for name, param in step.inputs.items():
        if f"inputs.{name}" in outside and not param.required and param.default is None:
            yield f"optional input {name!r} stands outside $[[ ]]"


def _references(text: str) -> list[str]:
    return [name.strip() for name in _REFERENCE.findall(text)]


def _input_faults(
    target: Param, text: str, inputs: dict[str, Param], steps: dict[str, Step], jobs: set[str]
) -> Iterator[str]:
    if match := _PARENT_INPUT.fullmatch(text):
        name = match[1]
        if name not in inputs:
            yield f"the pipeline has no input {name!r}{did_you_mean(name, list(inputs))}"
            return
        source = inputs[name]
        yield from _type_faults(source, target)
        if target.required and not source.required and source.default is None:
            yield f"the pipeline's input {name!r} is optional, but the component requires it"
        missing = [value for value in source.enum if target.enum and value not in target.enum]
        if missing:
            yield f"the pipeline allows {', '.join(missing)}, the component only {', '.join(target.enum)}"
    elif match := _JOB_OUTPUT.fullmatch(text):
        job, output = match[1], match[2]
        if job not in jobs:
            yield f"there is no job {job!r}{did_you_mean(job, sorted(jobs))}"
        elif job in steps and output not in steps[job].outputs:
            yield f"{job} has no output {output!r}{did_you_mean(output, list(steps[job].outputs))}"
        elif job in steps:
            yield from _type_faults(steps[job].outputs[output], target)
    elif "${{" in text:
        yield f"{text} is not a binding that can be followed"
    else:
        try:
            target.convert(text)
        except ValueError as error:
            yield f"{text!r} {error}"


def _type_faults(source: Param, target: Param) -> Iterator[str]:
    if source.kind != target.kind and target.kind not in _TAKEN_BY.get(source.kind, ()):
        yield f"{source.name!r} is of type {source.kind}, the component takes {target.kind}"


def _output_faults(step: Step, name: str, text: str, outputs: dict[str, Param]) -> Iterator[str]:
    match = _PARENT_OUTPUT.fullmatch(text)
    if name not in step.outputs:
        yield f"the component has no output {name!r}{did_you_mean(name, list(step.outputs))}"
    elif match is None or match[1] not in outputs:
        yield f"{text} is not an output of the pipeline{did_you_mean(match[1] if match else '', list(outputs))}"
    else:
        yield from _type_faults(step.outputs[name], outputs[match[1]])


def needs(step: Step) -> set[str]:
    """Return the names of the jobs whose outputs a step reads."""
    return {match[1] for text in step.bound_inputs.values() if (match := _JOB_OUTPUT.fullmatch(text))}


def order(steps: dict[str, Step]) -> list[str]:
    """Return the names of the steps, each after those it needs. Raises: CycleError if there is no such order."""
    return [
        name
        for name in TopologicalSorter({step.name: sorted(needs(step)) for step in steps.values()}).static_order()
        if name in steps
    ]


def resolve(text: str, inputs: dict[str, str | None], job_outputs: dict[tuple[str, str], Path]) -> str | None:
    """Return the value of a binding; None where an optional input has none."""
    if match := _PARENT_INPUT.fullmatch(text):
        return inputs.get(match[1])
    if match := _JOB_OUTPUT.fullmatch(text):
        return str(job_outputs[match[1], match[2]])
    return text


def parent_output(text: str) -> str | None:
    """Return the pipeline output that a job's output is bound to."""
    match = _PARENT_OUTPUT.fullmatch(text)
    return match[1] if match else None


def fill_command(command: str, inputs: dict[str, str | None], outputs: dict[str, str]) -> str:
    """Return the command with its values, as Azure ML does: a $[[ ]] group goes where one of its inputs is absent.

    Raises: ParameterError if a value can't be put in.
    """
    values = {f"inputs.{name}": text for name, text in inputs.items()} | {f"outputs.{n}": t for n, t in outputs.items()}

    def group(match: re.Match[str]) -> str:
        return "" if any(values[name] is None for name in _references(match[1])) else match[1]

    return quoting.filled(_GROUP.sub(group, command), {name: str(text) for name, text in values.items()})
