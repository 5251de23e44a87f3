"""The `finetune COMMAND …` line, also as `python -m finetune COMMAND …`."""

from importlib import import_module

from finetune.core.errors import Fault, ParameterError
from finetune.core.process import run_main
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


def console_script() -> None:
    """Run the `finetune` command."""
    run_main(main)


if __name__ == "__main__":
    console_script()
