"""A DeepSpeed config: what may stand in it. DeepSpeed itself ignores a key that it doesn't know."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune.core.errors import Fault, ParameterError
from finetune.params.schema import did_you_mean

# Block -> its keys.
KNOWN: dict[str, list[str]] = json.loads(Path(__file__).with_name("zero_keys.json").read_text(encoding="utf-8"))
RENAMED = {
    "bfloat16": "bf16",
    "zero_optimization.cpu_offload": '"offload_optimizer": {"device": "cpu"}',
    "zero_optimization.cpu_offload_param": '"offload_param": {"device": "cpu"}',
}
# Keys whose "auto" is filled in, by the Trainer from the parameters or by accelerate.
AUTO = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("bf16.enabled", "fp16.enabled", "steps_per_print"),
    *(f"optimizer.params.{key}" for key in ("lr", "betas", "eps", "weight_decay")),
    *(f"scheduler.params.{k}" for k in ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps")),
    *("zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size"),
    "zero_optimization.stage3_param_persistence_threshold",
}
NEVER_AUTO = {f"zero_optimization.{key}" for key in ("stage", "offload_optimizer.device", "offload_param.device")}
LEAVES_OUT_AUTO = ("zero_optimization", "bf16", "fp16")  # blocks in which DeepSpeed takes auto as its own default


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


FLAGS = (
    *("overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions", "round_robin_gradients"),
    *("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save"),
)
NUMBERS = (
    *("reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size"),
    *("stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
)
WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "zero_optimization.stage": (lambda v: _is_count(v) and v <= 3, "0, 1, 2 or 3"),
    "optimizer.params.betas": (
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_number, v)),
        "a list of two numbers",
    ),
    **{f"zero_optimization.{key}": (lambda v: isinstance(v, bool), "true or false") for key in FLAGS},
    **{f"zero_optimization.{key}": (_is_number, "a number") for key in NUMBERS},
    **{
        f"zero_optimization.offload_{what}.device": (lambda v: v in ("none", "cpu", "nvme"), "none, cpu or nvme")
        for what in ("optimizer", "param")
    },
    "gradient_clipping": (_is_number, "a number"),
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), (_is_count, "a whole number")),
    "gradient_accumulation_steps": (_is_count, "a whole number"),
    **{f"optimizer.params.{key}": (_is_number, "a number") for key in ("lr", "eps", "weight_decay")},
    **{f"scheduler.params.{key}": (_is_number, "a number") for key in ("warmup_min_lr", "warmup_max_lr")},
    **{f"scheduler.params.{key}": (_is_count, "a whole number") for key in ("warmup_num_steps", "total_num_steps")},
    **{f"{key}.enabled": (lambda v: isinstance(v, bool), "true or false") for key in ("bf16", "fp16")},
    **{f"{key}.type": (lambda v: isinstance(v, str), "a name") for key in ("optimizer", "scheduler")},
}


def read(path: Path) -> dict[str, Any]:
    """Raises: ParameterError, with every key that DeepSpeed does not know and every value that it can't take."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(Fault(f"--deepspeed {path} is no JSON file", why=str(error))) from None
    if not isinstance(config, dict):
        raise ParameterError(Fault(f"--deepspeed {path} is not a JSON object"))
    faults = list(_faults(config, str(path)))
    if faults:
        raise ParameterError(*faults)
    return config


def _faults(config: dict[str, Any], where: str, block: str = "") -> Iterator[Fault]:
    """Of the block and those in it; `null` counts as left out."""
    for key, value in list(config.items()):
        whole = f"{block}.{key}".lstrip(".")
        if value is None:
            del config[key]
        elif key not in KNOWN[block]:
            what = f"DeepSpeed has no key {whole!r}{did_you_mean(key, KNOWN[block])}"
            yield Fault(what, where=where, why="it would ignore it, or stop at it after the model is loaded")
        elif whole in RENAMED:
            yield Fault(f"{whole!r} is an old name", where=where, fix=RENAMED[whole])
        elif whole in KNOWN:
            if isinstance(value, dict):
                yield from _faults(value, where, whole)
            else:
                yield Fault(f"{whole!r} is {json.dumps(value)}, not an object", where=where, fix='{"key": value, …}')
        elif value == "auto" and (whole in NEVER_AUTO or not (whole in AUTO or block.startswith(LEAVES_OUT_AUTO))):
            yield Fault(f"{whole!r} is auto, and nobody fills that in", where=where, fix="a value, or leave it out")
        elif value != "auto" and (wanted := WANTED.get(whole)) and not wanted[0](value):
            yield Fault(f"{whole!r} is {json.dumps(value)}, not {wanted[1]}", where=where)


def stage(config: dict[str, Any]) -> int:
    """Of ZeRO; 0 where the config has none."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def offloads(config: dict[str, Any]) -> bool:
    """Whether the optimizer runs on the CPU, beside a GPU or not."""
    device = config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    return bool(device != "none")
