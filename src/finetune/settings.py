"""Parameters -> TrainingArguments and callbacks, and the account of every value that was derived."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import EarlyStoppingCallback, TrainingArguments

from finetune.console import say
from finetune.params import FinetuneParams
from finetune.schedule import Schedule
from finetune.schema import params_of
from finetune.tracking import MlflowMetrics, Progress

# The fused kernel computes the same step in one pass over the weights.
OPTIMIZERS = {"adamw_hf": "adamw_torch_fused", "adamw_torch": "adamw_torch_fused", "adafactor": "adafactor"}


@dataclass(frozen=True)
class Derived:
    """A value that follows from others instead of being taken from the command line."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value} ({self.reason})"


def training_arguments(params: FinetuneParams, steps: Schedule) -> TrainingArguments:
    """What the Trainer is told. Batches, loss and evaluation are ours: see training.py."""
    args = TrainingArguments(
        output_dir=str(params.pytorch_model_folder),
        num_train_epochs=params.num_train_epochs,
        max_steps=params.max_steps if params.max_steps > 0 else -1,
        per_device_train_batch_size=params.per_device_train_batch_size,
        per_device_eval_batch_size=params.per_device_eval_batch_size,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        optim=OPTIMIZERS[params.optim],
        learning_rate=params.learning_rate,
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        adam_beta1=params.adam_beta1,
        adam_beta2=params.adam_beta2,
        adam_epsilon=params.adam_epsilon,
        max_grad_norm=params.max_grad_norm,
        lr_scheduler_type=params.lr_scheduler_type,
        fp16=params.precision == "16",
        bf16=params.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=params.seed,
        full_determinism=params.enable_full_determinism,
        dataloader_num_workers=params.dataloader_num_workers,
        eval_strategy=params.evaluation_strategy,
        eval_steps=steps.evaluation_steps,
        save_strategy=params.evaluation_strategy,
        save_steps=steps.evaluation_steps,
        save_total_limit=params.save_total_limit if params.save_total_limit > 0 else None,
        logging_strategy=params.logging_strategy,
        logging_steps=params.logging_steps,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{params.metric_for_best_model}",
        greater_is_better=params.metric_for_best_model != "loss",
        restore_callback_states_from_checkpoint=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    if args.n_gpu > 1:
        # DataParallel would split a batch behind the loss's back.
        say(f"{args.n_gpu} GPUs are visible and one is used; torchrun --nproc-per-node {args.n_gpu} uses all")
        args._n_gpu = 1
    return args


def callbacks(params: FinetuneParams, head_metric: str) -> list[Any]:
    """What is shown, what is tracked, and early stopping."""
    stopping = EarlyStoppingCallback(params.early_stopping_patience, params.early_stopping_threshold)
    return [Progress(head_metric), MlflowMetrics(), *([stopping] if params.apply_early_stopping else [])]


def derived(params: FinetuneParams, asked: FinetuneParams, steps: Schedule) -> list[Derived]:
    """Every value that is not what its parameter says, with the reason.

    `params` is what runs; its batch may be smaller than asked.
    """
    lower = params.metric_for_best_model == "loss"
    found = [
        Derived(
            "best model",
            f"{'lowest' if lower else 'highest'} {params.metric_for_best_model}",
            "direction of the metric",
        )
    ]
    if OPTIMIZERS[params.optim] != params.optim:
        reason = "AdamW in one kernel; biases and layer norms have no weight decay"
        found.append(Derived("optim", OPTIMIZERS[params.optim], reason))
    if params.per_device_train_batch_size != asked.per_device_train_batch_size:
        reason = "auto_find_batch_size: more did not fit into memory"
        found.append(Derived("per_device_train_batch_size", params.per_device_train_batch_size, reason))
    if params.evaluation_strategy == "steps" and params.evaluation_steps_interval:
        reason = f"{params.evaluation_steps_interval:g} of {steps.steps_per_epoch} steps in an epoch"
        found.append(Derived("eval_steps", steps.evaluation_steps, reason))
    return found


def write_resolved(params: FinetuneParams, found: list[Derived], folder: Path) -> None:
    """resolved_config.yaml: every parameter with its value and where it comes from."""
    defaults = {f.name: f.default for f in fields(params)}
    overridden = {d.name: d for d in found}
    entries = {}
    for p in params_of(type(params)):
        value = vars(params)[p.name]
        origin = "default" if value == defaults[p.name] else "given"
        entries[p.name] = {"value": str(value) if isinstance(value, Path) else value, "origin": origin}
        if p.name in overridden:
            entries[p.name] |= {"used": overridden[p.name].value, "origin": f"derived: {overridden[p.name].reason}"}
    extra = {d.name: {"value": d.value, "origin": f"derived: {d.reason}"} for d in found if d.name not in entries}
    text = yaml.safe_dump(entries | extra, sort_keys=False, allow_unicode=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resolved_config.yaml").write_text(text, encoding="utf-8")
