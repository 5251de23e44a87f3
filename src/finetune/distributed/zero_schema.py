"""Check what stands in a DeepSpeed config against DeepSpeed's own models, parser and optimizers.

DeepSpeed itself ignores a key that it doesn't know, and takes "yes" for true. It is imported late: it imports torch.
"""

import inspect
import json
from collections import UserDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from finetune.core.errors import Fault, ParameterError
from finetune.core.reading import Unreadable, json_object
from finetune.core.types import Json
from finetune.params.schema import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

# Blocks without a model: DeepSpeed's parser asks for their keys one by one.
PARSED = ("activation_checkpointing", "aio", "checkpoint", "flops_profiler")
# Blocks with a type, and the types that this suite trains with.
TYPES = {
    "optimizer": ["Adam", "AdamW", "Lamb", "NAdam", "RAdam", "Adamax", "Lion", "Adagrad", "RMSprop", "Adadelta", "SGD"],
    "scheduler": ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"],
}
# What the Trainer and our own steps would not see: key -> what does it here. Some are unknown to newer versions.
NOT_HERE = {
    "amp": "--precision bf16",
    "torch_autocast": "--precision bf16",
    "elasticity": "--resume_from_checkpoint true with the same number of processes",
    "autotuning": "--auto_find_batch_size true",
    **dict.fromkeys(("compression_training", "curriculum_learning", "data_efficiency"), "leave it out"),
    **dict.fromkeys(("expert_parallel", "hybrid_engine", "pipeline", "tensor_parallel"), "leave it out"),
    **dict.fromkeys(("graph_harvesting", "progressive_layer_drop", "sparse_attention"), "leave it out"),
    **dict.fromkeys(("datastates_ckpt", "nebula", "sparse_gradients", "weight_quantization"), "leave it out"),
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
# DeepSpeed's models leave auto out, but accelerate reads these as they stand.
NEVER_AUTO = {f"zero_optimization.{key}" for key in ("stage", "offload_optimizer.device", "offload_param.device")}


def read(path: Path) -> Json:
    """Return the config without what is `null`, which counts as left out.

    Raises: ParameterError, with every key that DeepSpeed does not know and every value that it can't take.
    """
    from deepspeed.runtime.config_utils import dict_raise_error_on_duplicate_keys

    def block(pairs: list[tuple[str, object]]) -> Json:
        return {key: value for key, value in dict_raise_error_on_duplicate_keys(pairs).items() if value is not None}

    try:
        config = json_object(path, block)
    except Unreadable as reason:
        raise ParameterError(Fault(f"--deepspeed {path} is not a JSON file", why=str(reason))) from None
    if faults := _faults(config, _model_of(config)):
        raise ParameterError(*(replace(fault, where=str(path)) for fault in faults))
    return config


def _faults(block: Json, model: "type[BaseModel]", path: tuple[str, ...] = ()) -> list[Fault]:
    """Return the faults of the block and of those in it."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    found: list[Fault] = []
    fields = {name: field for key, field in model.model_fields.items() for name in (key, field.alias or key)}
    of_deepspeed = issubclass(model, DeepSpeedConfigModel)
    for key, value in block.items():
        whole = ".".join([*path, key])
        if whole in NOT_HERE:
            continue  # refused with what to do in place of it, whether this version of DeepSpeed knows it or not
        if key not in fields:
            what = f"DeepSpeed has no key {whole!r}{did_you_mean(key, list(fields))}"
            found.append(Fault(what, why="it would ignore it, or stop at it after the model is loaded"))
        elif new := _new_name(fields[key], value):
            found.append(Fault(f"{whole!r} is an old name", fix=new))
        elif inner := _model_in(fields[key]):
            if isinstance(value, dict):
                found += _faults(value, inner, (*path, key))
            else:
                found.append(Fault(f"{whole!r} is {json.dumps(value)}, not an object", fix='{"key": value, …}'))
        elif value == "auto":
            if whole in NEVER_AUTO or not (whole in AUTO or of_deepspeed):
                found.append(Fault(f"{whole!r} is auto, and nobody fills that in", fix="a value, or leave it out"))
        else:
            found += _faults_of_value(value, fields[key], (*path, key))
    if not found and of_deepspeed:  # values may be right one by one, and not beside each other
        found = _said_by(partial(model, **block), path)
    return found


def _faults_of_value(value: object, field: "FieldInfo", path: tuple[str, ...]) -> list[Fault]:
    """Return the faults of a value, strictly: "3" is not a number. But 5e8 is an integer."""
    from pydantic import TypeAdapter

    kind: Any = field.annotation
    if inspect.isclass(kind) and issubclass(kind, Enum):  # pydantic takes true for 1 in these
        wanted = list(dict.fromkeys(member.value for member in kind))
        if value in wanted and not isinstance(value, bool):
            return []
        *others, last = map(str, wanted)
        return [Fault(f"{'.'.join(path)!r} is {json.dumps(value)}, not {', '.join(others)} or {last}")]
    if field.metadata:
        kind = Annotated[kind, *field.metadata]
    text = json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)
    return _said_by(partial(TypeAdapter(kind).validate_json, text, strict=True), path)


def _said_by(validate: Callable[[], object], path: tuple[str, ...]) -> list[Fault]:
    """Return what pydantic says of a value or a block."""
    from pydantic import ValidationError

    found = []
    try:
        validate()
    except ValidationError as error:
        for fault in error.errors():
            whole, said = ".".join([*path, *map(str, fault["loc"])]), fault["msg"]
            wanted = said.removeprefix("Input should be ")
            if wanted != said:
                found.append(Fault(f"{whole!r} is {json.dumps(fault['input'])}, not {wanted}"))
            else:
                found.append(Fault(f"DeepSpeed can't take {whole!r} as it is", why=said))
    return found


def _new_name(field: "FieldInfo", value: object) -> str:
    """Return what to write in place of a field that DeepSpeed calls deprecated; "" where it does not."""
    said = field.json_schema_extra
    if not isinstance(said, dict) or not said.get("deprecated"):
        return ""
    new: Any = said.get("new_param_fn", lambda same: same)
    if not said.get("set_new_param", True):
        return f"{said['new_param']}"
    converted = json.dumps(new(value), default=lambda model: model.model_dump(mode="json", exclude_unset=True))
    return f'"{said["new_param"]}": {converted}'


def _model_in(field: "FieldInfo") -> "type[BaseModel] | None":
    """Return the model of a field that is a block, which may be left out; None for other fields."""
    from pydantic import BaseModel

    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel)), None)


def _model_of(config: Json) -> "type[BaseModel]":
    """Return the model of a whole config: its blocks have models of DeepSpeed, or keys that its parser asks for."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.precision_config import BFLOAT16, BFLOAT16_OLD, DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import Field, PositiveInt

    asked = _Asked((*PARSED, *TYPES))
    DeepSpeedConfig.__new__(DeepSpeedConfig)._initialize_params(asked)  # its __init__ wants a batch size as well
    kinds = {
        **asked.kinds,
        **{block: _model(asked[block].kinds) for block in PARSED},
        **{name: field.annotation for name, field in DeepSpeedMonitorConfig.model_fields.items()},
        **{"zero_optimization": DeepSpeedZeroConfig, "fp16": DeepSpeedFP16Config, BFLOAT16: DeepSpeedBF16Config},
        **{"comms_logger": CommsLoggerConfig, "compile": CompileConfig},
        **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), PositiveInt),
        "gradient_accumulation_steps": PositiveInt,
        BFLOAT16_OLD: Annotated[Any, Field(json_schema_extra={"deprecated": True, "new_param": BFLOAT16})],
    }
    for block in TYPES:
        kind = type_of(block, config.get(block))
        params = _model(arguments(kind)) if kind else Json
        kinds[block] = _model({**asked[block].kinds, "type": str, "params": params})
    return _model(kinds)


def _model(kinds: Json) -> "type[BaseModel]":
    from pydantic import create_model

    fields: Any = {key: (kind, None) for key, kind in kinds.items()}
    model: type[BaseModel] = create_model("Block", **fields)
    return model


class _Asked(UserDict[str, Any]):
    """A config of empty blocks that notes which keys it is asked for, and the types of their defaults."""

    def __init__(self, blocks: Iterable[str] = ()) -> None:
        super().__init__({block: _Asked() for block in blocks})
        self.kinds: Json = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.kinds[key] = _kind(default)
        return self.data.get(key, default)

    def __contains__(self, key: object) -> bool:
        self.kinds.setdefault(str(key), Any)
        return key in self.data


def _kind(default: object) -> Any:
    """Return the type of the values that may replace a default, as far as the default tells it."""
    from pydantic import conlist

    match default:
        case bool():
            return bool
        case int() | float():
            return float
        case tuple():
            return conlist(float, min_length=len(default), max_length=len(default))
    return Any


def type_of(block: str, given: object) -> str | None:
    """Return the type of an optimizer or scheduler block as TYPES spells it; DeepSpeed takes its own in any case."""
    name = str(given.get("type")) if isinstance(given, dict) else ""
    return next((kind for kind in TYPES[block] if kind.lower() == name.lower()), None)


def arguments(kind: str) -> Json:
    """Return the arguments of a type of optimizer or scheduler: the type of each by name.

    There may be several classes of an optimizer: which DeepSpeed takes follows from the config and the machine.
    """
    import torch
    from deepspeed.ops import adagrad, adam, lamb, lion
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.config import TORCH_ADAM_PARAM

    of_deepspeed = kind.removesuffix("W")  # it has one class for Adam and AdamW
    names = (kind, f"Fused{of_deepspeed}", f"DeepSpeedCPU{of_deepspeed}")
    modules = (torch.optim, adagrad, adam, lamb, lion, lr_schedules)
    found: Json = {TORCH_ADAM_PARAM: bool} if of_deepspeed == "Adam" else {}
    for made in (vars(module)[name] for module in modules for name in names if name in vars(module)):
        _, *taken = inspect.signature(made).parameters.values()  # the first are the weights
        found |= {a.name: a.annotation if a.annotation in (bool, int, float) else _kind(a.default) for a in taken}
    for name in ("adamw_mode", "max_grad_norm"):  # DeepSpeed gives the one itself, and stops at the other
        found.pop(name, None)
    return found


def filled(block: str, kind: str) -> list[str]:
    """Return the arguments that follow from parameters where a config leaves them out."""
    return [name for name in arguments(kind) if f"{block}.params.{name}" in AUTO]


def stage(config: Json) -> int:
    """Return the stage of ZeRO; 0 where the config has none."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def offloads(config: Json) -> bool:
    """Return whether the optimizer runs on the CPU, beside a GPU or not."""
    device = config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    return bool(device != "none")
