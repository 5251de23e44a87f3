"""The `finetune COMMAND …` line, and the --task word that every component's command line begins with."""

from importlib import import_module
from typing import Any

from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.core.process import run_main
from finetune.core.world import World
from finetune.distributed.settlement import Settled, settle
from finetune.params.components import TASKS
from finetune.params.schema import did_you_mean

COMMANDS = {  # name -> (module, what it does)
    "check": ("finetune.check", "look at a run before it is started: data, lengths, steps, memory and time"),
    "pipeline": ("finetune.pipeline", "run a pipeline component YAML on this machine"),
    "model_selector": ("finetune.model_selector", "import a model"),
    "preprocess": ("finetune.preprocess", "encode data for a model"),
    "run": ("finetune.run", "finetune"),
    "evaluation": ("finetune.evaluation", "score a model"),
    "export": ("finetune.export", "convert a finished model for OpenVINO and ONNX, and choose what to deploy"),
    "register": ("finetune.register", "put the components into a workspace or a registry of Azure ML"),
    "submit": ("finetune.submit", "run a pipeline component YAML on Azure ML"),
    "deploy": ("finetune.deploy", "serve a finetuned model from an endpoint of Azure ML"),
    "declare": ("finetune.azure.declare", "write the component YAMLs and environments from the parameters"),
}


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:16}{what}" for name, (_, what) in COMMANDS.items()]
        print("\n".join(["usage: finetune COMMAND [--help | parameters]", "", "commands:", *lines]))
        return
    command = argv[0]
    if command not in COMMANDS:
        near = did_you_mean(command, list(COMMANDS))
        raise ParameterError(Fault(f"unknown command {command!r}{near}", fix=f"finetune {' | '.join(COMMANDS)}"))
    import_module(COMMANDS[command][0]).main(argv[1:])


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


def console_script() -> None:
    """Run the `finetune` command."""
    run_main(main)
