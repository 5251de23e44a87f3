"""DeepSpeed's ZeRO (Rajbhandari et al. 2020): optimizer states, gradients and weights sharded among the processes.

This module merges a config and the parameters; zero_engine.py is what runs.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.core.types import Json
from finetune.distributed.zero_schema import NOT_HERE, TYPES, filled, offloads, read, stage, type_of
from finetune.params.finetune import FinetuneParams
from finetune.params.provenance import Derived
from finetune.params.schema import params_of, to_text

PACKAGE = Path(__file__).parents[1]
# In the repository beside src/, in a job's snapshot beside the package.
CONFIGS = tuple(folder / "configs" / "deepspeed" for folder in (PACKAGE.parent, PACKAGE.parents[1]))

# The parameter wins, since steps and checkpoints follow from it: key -> parameter.
SAID_TWICE = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}
# Of blocks that are there only because somebody wants them, the config wins: block -> parameter of its type, and
# key -> parameter.
BLOCKS = {
    "optimizer": ("optim", {"lr": "learning_rate", "eps": "adam_epsilon", "weight_decay": "weight_decay"}),
    "scheduler": ("lr_scheduler_type", {"warmup_max_lr": "learning_rate", "warmup_num_steps": "warmup_steps"}),
}


def merge(params: FinetuneParams, processes: int) -> tuple[FinetuneParams, Json | None, list[Derived]]:
    """Return the parameters that run, the config (None without DeepSpeed), and what is not as it was given.

    Raises: ParameterError if the config can't be read or contradicts itself; UnsupportedError.
    """
    if not params.apply_deepspeed:
        return params, None, []
    config = read(params.deepspeed) if params.deepspeed else _bundled(params.deepspeed_stage)
    refuse(config)
    said = []
    if params.deepspeed and stage(config) != int(params.deepspeed_stage):
        said.append(Derived("deepspeed_stage", stage(config), "the deepspeed config"))
    params, of_blocks = _with_blocks(params, config)
    said += of_blocks
    said += _parameters_win(params, config, processes)
    config.setdefault("zero_allow_untested_optimizer", True)  # Adafactor is one
    return params, config, said


def _bundled(wanted: str) -> Json:
    """Return the bundled config of the stage, read without DeepSpeed: tests read it as they read any other."""
    path = next(path for folder in CONFIGS if (path := folder / f"zero{wanted}.json").is_file())
    config: Json = json.loads(path.read_text(encoding="utf-8"))
    return config


def refuse(config: Json) -> None:
    """Raise UnsupportedError, with everything in the config that is not supported."""
    faults = []
    if stage(config) not in (1, 2, 3):
        why = f"the config has stage {stage(config)}, which shards nothing"
        faults.append(Fault("DeepSpeed without ZeRO", why=why, fix="--apply_deepspeed false, or a stage of 1, 2 or 3"))
    for key in sorted(NOT_HERE.keys() & config.keys()):
        what = f"{key!r} of a deepspeed config"
        faults.append(Fault(what, why="this suite does not train with it", fix=NOT_HERE[key]))
    for block in TYPES:
        if block in config and type_of(block, config[block]) is None:
            what = f"the {block} {config[block].get('type', 'without a type')} of a deepspeed config"
            fix = f"{', '.join(TYPES[block])}, or leave the block out"
            faults.append(Fault(what, why="this suite does not train with it", fix=fix))
    if faults:
        raise UnsupportedError(*faults)


def _with_blocks(params: FinetuneParams, config: Json) -> tuple[FinetuneParams, list[Derived]]:
    """Return the parameters with the values of the config's optimizer and scheduler; fill these blocks with the rest.

    Raises: ParameterError if a parameter has two values, or one that it can't have.
    """
    found: Json = {}
    said, faults = [], []
    for block, (name, keys) in BLOCKS.items():
        if block not in config:
            continue
        config[block]["type"] = type_of(block, config[block])
        said.append(Derived(name, config[block]["type"], f"the {block} block of the deepspeed config wins"))
        own = config[block].setdefault("params", {})
        values = {parameter: own[key] for key, parameter in keys.items() if own.get(key, "auto") != "auto"}
        if own.get("betas", "auto") != "auto":
            values["adam_beta1"], values["adam_beta2"] = own["betas"]
        for parameter, value in values.items():
            if found.setdefault(parameter, value) != value:
                what = f"the deepspeed config gives two values for {parameter}: {found[parameter]} and {value}"
                faults.append(Fault(what, fix="the same in optimizer and scheduler, or auto in one of them"))
        least = {"warmup_min_lr": own["warmup_min_lr"]} if "warmup_min_lr" in own else {}  # no parameter says it
        own |= dict.fromkeys(filled(block, config[block]["type"]), "auto") | least
        if config[block]["type"] in ("Adam", "AdamW") and not offloads(config):
            own.setdefault("torch_adam", True)  # DeepSpeed's own is compiled first, by an nvcc that fits torch
    faults += _out_of_range(found)
    if faults:
        raise ParameterError(*faults)
    won = {parameter: value for parameter, value in found.items() if value != vars(params)[parameter]}
    said += [Derived(parameter, value, "the deepspeed config wins") for parameter, value in won.items()]
    if "optimizer" in config and found.get("weight_decay", params.weight_decay):
        reason = "DeepSpeed's optimizer makes no exception"
        said.append(Derived("weight_decay on biases and layer norms", "true", reason))
    if "activation_checkpointing" in config:
        said.append(Derived("deepspeed activation_checkpointing", "no effect", "gradient_checkpointing does it"))
    return replace(params, **found), said


def _out_of_range(found: Json) -> Iterator[Fault]:
    """Yield the faults of values that the command line would refuse too."""
    known = {parameter.name: parameter for parameter in params_of(FinetuneParams)}
    for name, value in found.items():
        try:
            known[name].convert(str(value))
        except ValueError as error:
            yield Fault(f"{name} {value} of the deepspeed config {error}")


def _parameters_win(params: FinetuneParams, config: Json, processes: int) -> list[Derived]:
    """Let the Trainer fill in what the parameters say. Return where the config said something else.

    At such a mismatch transformers stops too, but only once the model is loaded.
    """
    batch = params.per_device_train_batch_size * params.gradient_accumulation_steps * processes
    wanted = {
        **{key: (vars(params)[name], name) for key, name in SAID_TWICE.items()},
        "train_batch_size": (batch, "what these give"),
        "bf16.enabled": (params.precision == "bf16", f"precision {params.precision}"),
        "fp16.enabled": (params.precision == "16", f"precision {params.precision}"),
    }
    said = []
    for whole, (value, winner) in wanted.items():
        block, _, key = whole.rpartition(".")
        inside = config.setdefault(block, {}) if block else config
        given, inside[key] = inside.get(key, "auto"), "auto"
        if given not in ("auto", value):
            shown = to_text(value) if isinstance(value, bool) else value
            said.append(Derived(f"deepspeed {whole}", shown, f"{winner} wins over the config's {to_text(given)}"))
    return said


def sharding(config: Json | None, processes: int) -> Json:
    """Return how the run is sharded, as a checkpoint that it goes on from must be too; nothing without DeepSpeed."""
    if config is None:
        return {}
    blocks: Json = {name: config[name] for name in BLOCKS if name in config}
    return {"ZeRO stage": stage(config), "processes": processes, "offload": offloads(config), **blocks}
