"""Combinations of parameters."""

from dataclasses import fields
from typing import Any

from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.params.finetune import SCHEDULERS, FinetuneParams
from finetune.params.schema import to_text

# (parameter, value, why, what to type): valid requests whose machinery isn't there.
UNSUPPORTED: tuple[tuple[str, Any, str, str], ...] = (
    ("apply_ort", True, "ONNX Runtime training was deprecated upstream and isn't wired in", "--apply_ort false"),
)


# (parameters, the parameter they depend on, its values for which they have an effect)
NEEDS: tuple[tuple[tuple[str, ...], str, tuple[Any, ...]], ...] = (
    (
        ("merge_lora_weights", "lora_alpha", "lora_r", "lora_dropout", "lora_type", "finetune_in_4bit"),
        "apply_lora",
        (True,),
    ),
    (("early_stopping_patience", "early_stopping_threshold"), "apply_early_stopping", (True,)),
    (("eval_steps", "evaluation_steps_interval"), "evaluation_strategy", ("steps",)),
    (("logging_steps",), "logging_strategy", ("steps",)),
    (("adam_beta1", "adam_beta2", "adam_epsilon"), "optim", ("adamw_hf", "adamw_torch")),
    (("deepspeed", "deepspeed_stage"), "apply_deepspeed", (True,)),
    (("warmup_steps",), "lr_scheduler_type", tuple(name for name in SCHEDULERS if name != "constant")),
    (("lr_scheduler_cycles",), "lr_scheduler_type", ("cosine_with_restarts",)),
    (("lr_scheduler_power",), "lr_scheduler_type", ("polynomial",)),
    (("keep_global_batch_size",), "auto_find_batch_size", (True,)),
)


def refuse_unsupported(params: FinetuneParams) -> None:
    """Raises: UnsupportedError, with every request that can't be carried out and the value to set instead."""
    given = vars(params)
    faults = [
        Fault(f"--{name} {to_text(given[name])}", why=why, fix=fix)
        for name, value, why, fix in UNSUPPORTED
        if given[name] == value
    ]
    if faults:
        raise UnsupportedError(*faults)


def refuse_contradictions(params: FinetuneParams) -> None:
    """Raises: ParameterError, with all parameters that contradict each other."""
    faults = []
    if params.evaluation_strategy == "steps" and not params.evaluation_steps_interval and params.eval_steps < 1:
        what = f"--evaluation_strategy steps needs --eval_steps of at least 1, not {params.eval_steps}"
        why = "without an evaluation there is no best model, and evaluation_steps_interval is 0"
        faults.append(Fault(what, why=why, fix="--eval_steps 500, or --evaluation_steps_interval 0.5"))
    if params.lr_scheduler_type == "polynomial" and params.learning_rate == 0:
        what = "--lr_scheduler_type polynomial falls from a learning rate above 0, and --learning_rate is 0"
        faults.append(Fault(what, fix="--learning_rate 2e-05, or --lr_scheduler_type constant"))
    if params.apply_deepspeed and params.apply_fsdp:
        what = "--apply_deepspeed true and --apply_fsdp true are two ways to cut up the same model"
        faults.append(Fault(what, fix="--apply_fsdp false, or --apply_deepspeed false"))
    if faults:
        raise ParameterError(*faults)


def without_effect(params: FinetuneParams) -> list[str]:
    """One line for each parameter that was set but that another parameter turns off."""
    given, defaults = vars(params), {f.name: f.default for f in fields(params)}
    lines = [
        f"{name} {to_text(given[name])} has no effect with {needed} {to_text(given[needed])}"
        for names, needed, values in NEEDS
        for name in names
        if given[name] != defaults[name] and given[needed] not in values
    ]
    if params.evaluation_steps_interval and params.eval_steps != defaults["eval_steps"]:
        lines.append(f"eval_steps {params.eval_steps} has no effect with evaluation_steps_interval")
    if params.apply_deepspeed and params.deepspeed and params.deepspeed_stage != defaults["deepspeed_stage"]:
        lines.append(f"deepspeed_stage {params.deepspeed_stage} has no effect with deepspeed: the config says it")
    if params.max_steps > 0 and params.num_train_epochs != defaults["num_train_epochs"]:
        lines.append(f"num_train_epochs {params.num_train_epochs} has no effect with max_steps {params.max_steps}")
    return lines
