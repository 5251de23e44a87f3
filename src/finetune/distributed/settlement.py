"""Settle what a command line means: its task, its words, its preset and DeepSpeed config, and what every rule says.

This is the one place where that is decided: for a component that runs, for `finetune check` and `finetune pipeline`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.core.types import Json
from finetune.core.world import World
from finetune.distributed import onnx_runtime, zero_config, zero_schema
from finetune.params.case import Case, ModelFacts
from finetune.params.components import TASKS
from finetune.params.finetune import FinetuneParams
from finetune.params.presets import with_preset
from finetune.params.provenance import Derived
from finetune.params.rules import errors, notes
from finetune.params.schema import did_you_mean, missing_of, overlaps_of, parse

P = TypeVar("P")


@dataclass(frozen=True)
class Settled(Generic[P]):
    """A command line that nothing is wrong with, and the parameters that it means."""

    asked: P  # the command line
    params: P  # the same, with what is given instead
    given: tuple[Derived, ...]  # by a preset, a DeepSpeed config, or for lack of an engine
    deepspeed: Json | None  # the config; None without DeepSpeed
    notes: tuple[str, ...]  # what has no effect


def settle_task(argv: list[str], component: str, module: str, world: World | None = None) -> tuple[str, Settled[Any]]:
    """Take `--task NAME` out of the words and settle the rest as the command line of that task's component.

    The world is this one where none is given: the component begins now, and its inputs have to be there. Without
    --task, --help shows the first task. Raises: ParameterError or UnsupportedError.
    """
    begins_now = world is None
    world = world or World.here()
    words = [word for pair in argv for word in (pair.split("=", 1) if pair.startswith("--task=") else [pair])]
    task, rest = None, words
    if "--task" in words[:-1]:
        at = words.index("--task")
        task, rest = words[at + 1], words[:at] + words[at + 2 :]
    if task in TASKS:
        return task, _settle(task, rest, component, module, world, begins_now)
    first = next(iter(TASKS))
    faults = [Fault("--task is missing" if task is None else f"unknown task {task!r}{did_you_mean(task, list(TASKS))}")]
    try:
        _settle(first, rest, component, module, world, begins_now)
    except (ParameterError, UnsupportedError) as error:
        faults += error.faults
    raise ParameterError(Fault(faults[0].what, fix=f"--task {' | '.join(TASKS)}"), *faults[1:])


def _settle(task: str, words: list[str], component: str, module: str, world: World, begins_now: bool) -> Settled[Any]:
    return settle(vars(TASKS[task])[component], words, world, f"python -m {module} --task {task}", begins_now)


def settle(
    component: type[P], argv: Sequence[str], world: World, prog: str = "", begins_now: bool = False
) -> Settled[P]:
    """Parse the words of a component and see that they go together in this world.

    With `begins_now` its inputs have to be there; those of a step in a pipeline are written by the steps before it.
    Raises: ParameterError or UnsupportedError, with everything that is wrong.
    """
    asked = parse(component, argv, prog)
    params: Any = asked
    given: list[Derived] = []
    config = None
    found: list[ParameterError | UnsupportedError] = []
    if isinstance(params, FinetuneParams):
        params, given = with_preset(params, world.processes)
        try:
            if params.deepspeed is None or world.has_deepspeed():  # its models read a config; without it a rule refuses
                params, config, of_config = zero_config.merge(params, world.processes)
                given += of_config
        except (ParameterError, UnsupportedError) as error:
            found.append(error)
        if params.apply_ort and (why := onnx_runtime.why_not(params, world)):
            params = replace(params, apply_ort=False)
            given.append(onnx_runtime.by_pytorch(why))
    case = Case(params, world, None if config is None else zero_schema.stage(config))
    raise_together([*errors(case), *found, ParameterError(*overlaps_of(params))])
    # Of several processes, one that ends before it has joined the others would let them wait: they look afterwards.
    raise_together([ParameterError(*missing_of(params))] if begins_now and world.processes == 1 else [])
    return Settled(asked, params, tuple(given), config, tuple(notes(case)))


def check_model(settled: Settled[P], world: World, model: ModelFacts) -> None:
    """Raise UnsupportedError, with everything that is asked of the model and that it can't do."""
    raise_together(errors(Case(settled.params, world, known_model=model)))


def raise_together(found: Sequence[ParameterError | UnsupportedError]) -> None:
    """Raise the faults of all, if there are any, as a ParameterError if one of them is, else as an UnsupportedError."""
    wrong = [fault for error in found if isinstance(error, ParameterError) for fault in error.faults]
    unsupported = [fault for error in found if isinstance(error, UnsupportedError) for fault in error.faults]
    if wrong:
        raise ParameterError(*wrong, *unsupported)
    if unsupported:
        raise UnsupportedError(*unsupported)
