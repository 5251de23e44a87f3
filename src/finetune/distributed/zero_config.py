"""DeepSpeed's ZeRO (Rajbhandari et al. 2020): optimizer states, gradients and weights cut up among the processes.

What a config and the parameters come to together. No torch here; zero_engine.py is what runs.
"""

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.distributed.zero_schema import offloads, read, stage
from finetune.params.finetune import FinetuneParams
from finetune.params.provenance import Derived

PACKAGE = Path(__file__).parents[1]
# In the repository beside src/, in a job's snapshot beside the package.
CONFIGS = tuple(folder / "configs" / "deepspeed" for folder in (PACKAGE.parent, PACKAGE.parents[1]))

# What the Trainer and our own steps would not see: key -> what does it here.
NOT_HERE = {
    "amp": "--precision bf16",
    "torch_autocast": "--precision bf16",
    "elasticity": "--resume_from_checkpoint true with the same number of processes",
    "autotuning": "--auto_find_batch_size true",
    **dict.fromkeys(("compression_training", "curriculum_learning", "data_efficiency"), "leave it out"),
    **dict.fromkeys(("expert_parallel", "hybrid_engine", "pipeline", "tensor_parallel"), "leave it out"),
    **dict.fromkeys(("sparse_gradients", "weight_quantization"), "leave it out"),
}
# Keys that a parameter says as well: key -> parameter. The parameter wins, since steps and checkpoints follow from it.
SAID_TWICE = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}
PRECISIONS = {"bf16": "bf16", "fp16": "16"}
# Of the blocks, which are there only because somebody wants them, the config wins: key -> parameter.
OPTIMIZER = {"lr": "learning_rate", "eps": "adam_epsilon", "weight_decay": "weight_decay"}
SCHEDULER = {"warmup_max_lr": "learning_rate", "warmup_num_steps": "warmup_steps"}
# Type -> the keys that follow from parameters where the config leaves them out.
ADAM = ("lr", "betas", "eps", "weight_decay")
OPTIMIZERS = {
    **dict.fromkeys(("Adam", "AdamW", "Lamb", "NAdam", "RAdam", "Adamax"), ADAM),
    "Lion": ("lr", "betas", "weight_decay"),
    **dict.fromkeys(("Adagrad", "RMSprop", "Adadelta"), ("lr", "eps", "weight_decay")),
    "SGD": ("lr", "weight_decay"),
}
SCHEDULERS = {
    "WarmupLR": ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"),
    "WarmupDecayLR": ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"),
    "WarmupCosineLR": ("warmup_num_steps", "total_num_steps"),
}
TYPES: dict[str, dict[str, tuple[str, ...]]] = {"optimizer": OPTIMIZERS, "scheduler": SCHEDULERS}


def merge(params: FinetuneParams, processes: int) -> tuple[FinetuneParams, dict[str, Any] | None, list[Derived]]:
    """(the parameters that run, the config or None without DeepSpeed, what is not as it was given).

    Raises: ParameterError for a config that can't be read or contradicts itself; UnsupportedError.
    """
    if not params.apply_deepspeed:
        return params, None, []
    if find_spec("deepspeed") is None:
        why, fix = "the package deepspeed is not installed", 'pip install ".[deepspeed]", or --apply_deepspeed false'
        raise UnsupportedError(Fault("--apply_deepspeed true", why=why, fix=fix))
    config = read(params.deepspeed or _bundled(params.deepspeed_stage))
    refuse(params, config)
    said = []
    if params.deepspeed and stage(config) != int(params.deepspeed_stage):
        said.append(Derived("deepspeed_stage", stage(config), "the deepspeed config"))
    params, of_blocks = _with_blocks(params, config)
    said += of_blocks
    said += _parameters_win(params, config, processes)
    config.setdefault("zero_allow_untested_optimizer", True)  # Adafactor is one
    return params, config, said


def _bundled(wanted: str) -> Path:
    return next(path for folder in CONFIGS if (path := folder / f"zero{wanted}.json").is_file())


def refuse(params: FinetuneParams, config: dict[str, Any]) -> None:
    """Raises: UnsupportedError, with everything that does not go together with DeepSpeed."""
    faults = []
    if stage(config) not in (1, 2, 3):
        why = f"the config has stage {stage(config)}, which cuts nothing up"
        faults.append(Fault("DeepSpeed without ZeRO", why=why, fix="--apply_deepspeed false, or a stage of 1, 2 or 3"))
    if params.auto_find_batch_size and stage(config) == 3:
        why = "ZeRO-3 cuts up the weights before a batch can be tried"
        faults.append(Fault("--auto_find_batch_size true with ZeRO-3", why=why, fix="--auto_find_batch_size false"))
    if params.apply_lora and params.finetune_in_4bit:
        fix = "--finetune_in_4bit false, or --apply_deepspeed false"
        why = "ZeRO cuts up weights of 16 or 32 bits"
        faults.append(Fault("--finetune_in_4bit true with DeepSpeed", why=why, fix=fix))
    for key in sorted(NOT_HERE.keys() & config.keys()):
        what = f"{key!r} of a deepspeed config"
        faults.append(Fault(what, why="this suite does not train with it", fix=NOT_HERE[key]))
    for block in _blocks(config):
        kind = config[block].get("type")
        if _type_of(block, kind) is None:
            what = f"the {block} {kind or 'without a type'} of a deepspeed config"
            fix = f"{', '.join(TYPES[block])}, or leave the block out"
            faults.append(Fault(what, why="this suite does not train with it", fix=fix))
    if params.torch_compile:
        fix = "--torch_compile false, or --apply_deepspeed false"
        faults.append(Fault("--torch_compile true with DeepSpeed", why="its hooks break the compiled graph", fix=fix))
    if faults:
        raise UnsupportedError(*faults)


def _blocks(config: dict[str, Any]) -> list[str]:
    return [block for block in TYPES if block in config]


def _type_of(block: str, name: Any) -> str | None:
    """As it stands in TYPES; DeepSpeed takes the names of its own optimizers in any case."""
    return next((kind for kind in TYPES[block] if kind.lower() == str(name).lower()), None)


def _with_blocks(params: FinetuneParams, config: dict[str, Any]) -> tuple[FinetuneParams, list[Derived]]:
    """The parameters as the config's optimizer and scheduler have them. Raises: ParameterError if those contradict."""
    found: dict[str, Any] = {}
    said, faults = [], []
    for block, keys, name in (("optimizer", OPTIMIZER, "optim"), ("scheduler", SCHEDULER, "lr_scheduler_type")):
        if block not in config:
            continue
        config[block]["type"] = _type_of(block, config[block]["type"])
        said.append(Derived(name, config[block]["type"], f"the {block} block of the deepspeed config wins"))
        own = config[block].setdefault("params", {})
        if block == "optimizer" and isinstance(own.get("betas"), list):
            own = {**own, "adam_beta1": own["betas"][0], "adam_beta2": own["betas"][1]}
        for key, parameter in {**keys, "adam_beta1": "adam_beta1", "adam_beta2": "adam_beta2"}.items():
            value = own.get(key, "auto")
            if value == "auto":
                continue
            if found.setdefault(parameter, value) != value:
                what = f"the deepspeed config gives two values for {parameter}: {found[parameter]} and {value}"
                faults.append(Fault(what, fix=f"the same in optimizer and scheduler, or {block}.params.{key} auto"))
    if faults:
        raise ParameterError(*faults)
    for parameter, value in found.items():
        if value != vars(params)[parameter]:
            said.append(Derived(parameter, value, "the deepspeed config wins"))
    if "optimizer" in config and found.get("weight_decay", params.weight_decay):
        reason = "DeepSpeed's optimizer makes no exception"
        said.append(Derived("weight_decay on biases and layer norms", "true", reason))
    for block in _blocks(config):
        values, filled = config[block]["params"], TYPES[block][config[block]["type"]]
        least = {"warmup_min_lr": values["warmup_min_lr"]} if "warmup_min_lr" in values else {}  # no parameter says it
        values |= dict.fromkeys(filled, "auto") | least  # what the parameters now say
    if "activation_checkpointing" in config:
        said.append(Derived("deepspeed activation_checkpointing", "no effect", "gradient_checkpointing does it"))
    return replace(params, **found), said


def _parameters_win(params: FinetuneParams, config: dict[str, Any], processes: int) -> list[Derived]:
    """Let the config say what the parameters say. -> where it said something else."""
    before, said = copy.deepcopy(config), []
    wanted = {key: vars(params)[name] for key, name in SAID_TWICE.items()}
    wanted["train_batch_size"] = params.per_device_train_batch_size * params.gradient_accumulation_steps * processes
    for key, value in wanted.items():
        given, config[key] = before.get(key, "auto"), "auto"
        if given not in ("auto", value):
            reason = f"{SAID_TWICE.get(key, 'what these give')} wins over the config's {given}"
            said.append(Derived(f"deepspeed {key}", value, reason))
    for key, precision in PRECISIONS.items():
        value = params.precision == precision
        given = before.get(key, {}).get("enabled", "auto")
        config[key] = {**before.get(key, {}), "enabled": "auto"}
        if given not in ("auto", value):
            reason = f"precision {params.precision} wins over the config's {str(given).lower()}"
            said.append(Derived(f"deepspeed {key}.enabled", str(value).lower(), reason))
    return said


def sharding(config: dict[str, Any] | None, processes: int) -> dict[str, Any]:
    """What a run must have in common with the one whose checkpoint it goes on from; nothing without DeepSpeed."""
    if config is None:
        return {}
    blocks: dict[str, Any] = {name: config[name] for name in ("optimizer", "scheduler") if name in config}
    return {"ZeRO stage": stage(config), "processes": processes, "offload": offloads(config), **blocks}
