"""A pipeline component YAML -> steps, with every binding checked.

azure-ai-ml accepts a wrong parent input, job name, job output or child input, a mismatch of types and a cycle without
a word; here each is a fault, and all of them are reported at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import Fault, ParameterError
from finetune.schema import Param, did_you_mean, from_yaml, to_text

_PARENT_INPUT = re.compile(r"\$\{\{\s*parent\.inputs\.(\w+)\s*\}\}")
_PARENT_OUTPUT = re.compile(r"\$\{\{\s*parent\.outputs\.(\w+)\s*\}\}")
_JOB_OUTPUT = re.compile(r"\$\{\{\s*parent\.jobs\.(\w+)\.outputs\.(\w+)\s*\}\}")
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


@dataclass(frozen=True)
class Step:
    """One job of the pipeline and its component."""

    name: str
    component: dict[str, Any]
    folder: Path  # of the component's YAML: its relative paths start here
    inputs: dict[str, Param]
    outputs: dict[str, Param]
    bound_inputs: dict[str, str]
    bound_outputs: dict[str, str]
    settings: dict[str, Any]  # compute, resources, distribution


@dataclass(frozen=True)
class Pipeline:
    """A pipeline component."""

    path: Path
    inputs: dict[str, Param]
    outputs: dict[str, Param]
    steps: tuple[Step, ...]  # in an order in which they can run


def load_pipeline(path: Path) -> Pipeline:
    """Raises: ParameterError, with every fault of every binding."""
    spec = _read(path)
    inputs, outputs = _params(spec.get("inputs")), _params(spec.get("outputs"))
    steps = tuple(_step(path, name, job) for name, job in (spec.get("jobs") or {}).items())
    faults = [
        Fault(what, where=f"{path.name}, {where}")
        for where, what in _faults(inputs, outputs, {s.name: s for s in steps})
    ]
    if not steps:
        faults.append(Fault(f"{path} has no jobs", fix="give a YAML of `type: pipeline`"))
    if faults:
        raise ParameterError(*faults)
    return Pipeline(path, inputs, outputs, _ordered(path, steps))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ParameterError(Fault(f"{path} is missing", fix="give the path of a component YAML"))
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ParameterError(Fault(f"{path} is not valid YAML", why=str(error))) from None
    if not isinstance(spec, dict):
        raise ParameterError(Fault(f"{path} is no component", why="its YAML is no mapping"))
    return spec


def _params(entries: dict[str, Any] | None) -> dict[str, Param]:
    return {name: from_yaml(name, entry) for name, entry in (entries or {}).items()}


def _step(pipeline: Path, name: str, job: dict[str, Any]) -> Step:
    path = (pipeline.parent / str(job.get("component", "")).removeprefix("file:")).resolve()
    component = _read(path)
    return Step(
        name=name,
        component=component,
        folder=path.parent,
        inputs=_params(component.get("inputs")),
        outputs=_params(component.get("outputs")),
        bound_inputs={key: to_text(value) for key, value in (job.get("inputs") or {}).items()},
        bound_outputs={key: to_text(value) for key, value in (job.get("outputs") or {}).items()},
        settings={key: job[key] for key in ("compute", "resources", "distribution") if key in job},
    )


def _faults(inputs: dict[str, Param], outputs: dict[str, Param], steps: dict[str, Step]) -> Iterator[tuple[str, str]]:
    """(where, what) of every binding that can't work."""
    for step in steps.values():
        for name, text in step.bound_inputs.items():
            where = f"{step.name}.inputs.{name}"
            if name not in step.inputs:
                yield where, f"the component has no input {name!r}{did_you_mean(name, list(step.inputs))}"
            else:
                yield from ((where, what) for what in _input_faults(step.inputs[name], text, inputs, steps))
        for name, param in step.inputs.items():
            if param.required and name not in step.bound_inputs:
                yield f"{step.name}.inputs", f"required input {name!r} is not bound"
        for name, text in step.bound_outputs.items():
            yield from ((f"{step.name}.outputs.{name}", what) for what in _output_faults(step, name, text, outputs))
        for text in _texts(step.settings):
            for name in _PARENT_INPUT.findall(text):
                if name not in inputs:
                    yield step.name, f"the pipeline has no input {name!r}{did_you_mean(name, list(inputs))}"
    bound = {
        name for step in steps.values() for text in step.bound_outputs.values() for name in _PARENT_OUTPUT.findall(text)
    }
    for name in outputs:
        if name not in bound:
            yield f"outputs.{name}", "no job writes it"


def _input_faults(target: Param, text: str, inputs: dict[str, Param], steps: dict[str, Step]) -> Iterator[str]:
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
        if job not in steps:
            yield f"there is no job {job!r}{did_you_mean(job, list(steps))}"
        elif output not in steps[job].outputs:
            yield f"{job} has no output {output!r}{did_you_mean(output, list(steps[job].outputs))}"
        else:
            yield from _type_faults(steps[job].outputs[output], target)
    elif "${{" in text:
        yield f"{text} is no binding that can be followed"
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
        yield f"{text} is no output of the pipeline{did_you_mean(match[1] if match else '', list(outputs))}"
    else:
        yield from _type_faults(step.outputs[name], outputs[match[1]])


def _texts(value: Any) -> Iterator[str]:
    for item in value.values() if isinstance(value, dict) else [value]:
        if isinstance(item, dict):
            yield from _texts(item)
        else:
            yield str(item)


def needs(step: Step) -> set[str]:
    """Names of the jobs whose outputs a step reads."""
    return {match[1] for text in step.bound_inputs.values() if (match := _JOB_OUTPUT.fullmatch(text))}


def _ordered(path: Path, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    ordered: list[Step] = []
    waiting = list(steps)
    while waiting:
        done = {step.name for step in ordered}
        ready = [step for step in waiting if needs(step) <= done]
        if not ready:
            raise ParameterError(
                Fault("the jobs wait for each other", where=f"{path.name}, {', '.join(s.name for s in waiting)}")
            )
        ordered += ready
        waiting = [step for step in waiting if step not in ready]
    return tuple(ordered)


def resolve(text: str, inputs: dict[str, str | None], job_outputs: dict[tuple[str, str], Path]) -> str | None:
    """The value of a binding; None where an optional input has none."""
    if match := _PARENT_INPUT.fullmatch(text):
        return inputs.get(match[1])
    if match := _JOB_OUTPUT.fullmatch(text):
        return str(job_outputs[match[1], match[2]])
    return text


def parent_output(text: str) -> str | None:
    """The pipeline output that a job's output is bound to."""
    match = _PARENT_OUTPUT.fullmatch(text)
    return match[1] if match else None


def fill_command(command: str, inputs: dict[str, str | None], outputs: dict[str, str]) -> str:
    """The command with its values put in, as Azure ML does: a $[[ ]] group goes where one of its inputs is absent."""
    import shlex

    reference = re.compile(r"\$\{\{\s*(inputs|outputs)\.(\w+)\s*\}\}")

    def value(match: re.Match[str]) -> str:
        return shlex.quote(str((inputs if match[1] == "inputs" else outputs)[match[2]]))

    def group(match: re.Match[str]) -> str:
        absent = any(kind == "inputs" and inputs.get(name) is None for kind, name in reference.findall(match[1]))
        return "" if absent else match[1]

    return reference.sub(value, re.sub(r"\$\[\[(.*?)\]\]", group, command, flags=re.S))
