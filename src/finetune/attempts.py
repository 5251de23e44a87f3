"""Training: one attempt, or with auto_find_batch_size as many as it takes to find a batch that fits into memory."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import load_from_disk
from transformers import set_seed

from finetune import adapt, checkpoints, settings
from finetune.adapt import four_bit
from finetune.allocator import out_of_memory, return_freed_memory
from finetune.console import is_main_process, say, some
from finetune.errors import Fault, ModelError
from finetune.handoff import Preprocessed, SelectedModel, read_rows
from finetune.head import describe_new, head_parameters
from finetune.model import load_model, load_tokenizer, store_state
from finetune.params import FinetuneParams
from finetune.resolved import Derived, write_resolved
from finetune.schedule import Schedule, processes, schedule, with_smaller_batch
from finetune.tasks.task import Task
from finetune.tracking import log_summary
from finetune.training import FinetuneTrainer


class Attempt(NamedTuple):
    """One try to train: with auto_find_batch_size there may be several."""

    params: FinetuneParams
    wanted: FinetuneParams  # the same before any batch was too large
    steps: Schedule
    trainer: FinetuneTrainer
    restore: Callable[[Any], Any]  # undoes the adaptations of the model
    derived: list[Derived]


def train(
    asked: FinetuneParams,
    params: FinetuneParams,
    preset: list[Derived],
    task: Task,
    preprocessed: Preprocessed,
    resume: Path | None,
) -> tuple[Attempt, dict[str, float]]:
    """Train; where memory runs out and auto_find_batch_size is true, shrink the batch and start from the first weights.

    `asked` is the command line, `params` the same with its preset. -> (the attempt that reached the end, its speed).
    """
    data = load_windows(params)
    tried = checkpoints.with_found_batch(params, resume) if resume else params
    said: list[Derived] = []
    while True:
        attempt = build(tried, params, preset, task, preprocessed, data)
        tell(attempt, asked, said)
        try:
            speed = fit(attempt, resume)
        except (RuntimeError, MemoryError) as error:
            tried = next_try(tried, resume, error)
        else:
            if params.auto_find_batch_size:
                say(f"auto_find_batch_size: {batch_text(tried)} fits into memory")
            return attempt, speed
        said = attempt.derived
        del attempt
        gc.collect()
        clear_device_cache()
        return_freed_memory()
        if not resume and is_main_process():
            checkpoints.discard(params.pytorch_model_folder)


def next_try(tried: FinetuneParams, resume: Path | None, error: Exception) -> FinetuneParams:
    """With a smaller batch. Raises: the error, if none is asked for or left; ModelError in a resumed run."""
    batch = tried.per_device_train_batch_size
    if not tried.auto_find_batch_size or batch == 1 or not out_of_memory(error):
        raise error
    if resume and not tried.keep_global_batch_size:
        why = "a resumed run can't change the windows of a step"
        fault = Fault(f"memory runs out with {batch} windows at a time", why=why, fix="--keep_global_batch_size true")
        raise ModelError(fault) from None
    smaller = with_smaller_batch(tried)
    say(f"out of memory with per_device_train_batch_size {batch}; starting again with {batch_text(smaller)}")
    return smaller


def batch_text(params: FinetuneParams) -> str:
    """What auto_find_batch_size changes."""
    accumulated = f", gradient_accumulation_steps {params.gradient_accumulation_steps}"
    return f"{params.per_device_train_batch_size}{accumulated if params.keep_global_batch_size else ''}"


def tell(attempt: Attempt, asked: FinetuneParams, said: list[Derived]) -> None:
    """One line for each value that is not what the command line says, and all of them in resolved_config.yaml."""
    for item in attempt.derived:
        if item not in said:
            say(str(item))
    if is_main_process():
        write_resolved(asked, attempt.derived, asked.pytorch_model_folder)
    args = attempt.trainer.args
    where = f"{processes()} x {args.device.type}, precision {attempt.params.precision}"
    windows = len(attempt.trainer.train_dataset)
    say(f"{windows} windows, {attempt.steps.total_steps} steps of {attempt.steps.global_batch}, {where}")


def build(
    params: FinetuneParams,
    wanted: FinetuneParams,
    preset: list[Derived],
    task: Task,
    preprocessed: Preprocessed,
    data: dict[str, Any],
) -> Attempt:
    """The model from the imported weights, adapted, in a Trainer. The batch of `params` may be smaller than wanted."""
    steps = schedule(params, len(data["train"]), processes())
    args = settings.training_arguments(params, steps)
    set_seed(params.seed)  # for the new head; the Trainer sets it again, and what full determinism needs
    source = SelectedModel.model_folder(params.model_selector_output)
    state = task.state(**preprocessed.state)
    model, new = load_model(source, task, state, params.ignore_mismatched_sizes, params.attn_implementation)
    for line in describe_new(model, new, model.config.architectures):
        say(line)
    store_state(model, state, task)
    attention = model.config._attn_implementation
    if params.apply_lora:
        refuse_frozen_random(model, new)
    adapted = adapt.adapt(model, params)
    for line in adapted.said:
        say(line)
    trainer = FinetuneTrainer(
        model=adapted.model,
        args=args,
        task=task,
        state=state,
        train=data["train"],
        validation=data["validation"],
        validation_rows=read_rows(Preprocessed.rows_file(params.preprocess_output, "validation")),
        tokenizer=load_tokenizer(Preprocessed.tokenizer_folder(params.preprocess_output), task),
        steps=steps,
        keep_batches=task.keep_batches(params),
        save_steps=params.save_steps,
        throughput_warmup_steps=params.throughput_warmup_steps,
        callbacks=settings.callbacks(params, task.head_metric(state)),
    )
    derived = [*preset, *settings.derived(params, wanted, steps, attention)]
    return Attempt(params, wanted, steps, trainer, adapted.restore, derived)


def refuse_frozen_random(model: Any, new: list[str]) -> None:
    """Raises: ModelError if LoRA would leave weights as they are that no pretraining has seen."""
    lost = sorted(set(new) - set(head_parameters(model)))
    if lost:
        what = "LoRA would keep weights frozen that are random, since the imported model lacks them"
        raise ModelError(Fault(what, why=some(lost), fix="--apply_lora false, or import a model that has them"))


def final_metrics(attempt: Attempt) -> dict[str, float]:
    """Of the model that will be saved: the best one's, or in 4 bits those that it has without them."""
    trainer = attempt.trainer
    if not four_bit.wanted(attempt.params):
        return trainer.best_metrics()
    four_bit.restore(trainer.accelerator.unwrap_model(trainer.model))
    say("without 4 bits, as it will be saved:")
    return {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}


def fit(attempt: Attempt, resume: Path | None) -> dict[str, float]:
    """Train to the end with the best model loaded. -> its speed; none if the run had ended before.

    Raises: ParameterError, ModelError.
    """
    params, steps, trainer = attempt.params, attempt.steps, attempt.trainer
    marker = checkpoints.Marker.of(params, attempt.wanted, steps, len(trainer.train_dataset))
    trainer.add_callback(checkpoints.MarkWhole(marker))
    if resume:
        checkpoints.refuse_other_run(resume, marker)
    if resume and (why := checkpoints.why_over(resume, params, steps)):
        say(f"nothing is left to train after {resume.name}: {why}")
        trainer.restore_best(resume)
        speed = {}
    else:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        speed = speed_of(trainer)
    if not all(torch.isfinite(p).all() for p in trainer.model.parameters()):
        fix = "a lower --learning_rate, a positive --max_grad_norm, or --precision bf16"
        raise ModelError(Fault("training diverged: the best weights are not finite", fix=fix))
    state = trainer.state
    if state.best_model_checkpoint is None:
        fix = "look at the validation loss above; a lower --learning_rate may help"
        raise ModelError(Fault("there is no best checkpoint: no evaluation gave a finite metric", fix=fix))
    say(f"best at step {state.best_global_step}: {params.metric_for_best_model} {state.best_metric:.4f}")
    return speed


def speed_of(trainer: FinetuneTrainer) -> dict[str, float]:
    """Seconds and rates of the training that has just ended, said and logged."""
    speed = trainer.throughput.rates(trainer.accelerator.gather)
    args = trainer.args
    batch = {name: vars(args)[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    log_summary({**speed, **batch, "trained_parameters": trained})
    rates = f"{speed['train_samples_per_second']:.1f} samples/s, {speed['train_tokens_per_second']:.0f} tokens/s"
    warmup = trainer.throughput.warmup_steps
    without = f", without the first {warmup} steps" if trainer.throughput.without_warmup else ""
    say(f"trained {speed['train_seconds']:.0f} s: {rates}{without}")
    return speed


def load_windows(params: FinetuneParams) -> dict[str, Any]:
    """The encoded training and validation rows, memory-mapped."""
    folder = params.preprocess_output
    splits = ("train", "validation")
    return {name: load_from_disk(Preprocessed.windows_folder(folder, name)).with_format("numpy") for name in splits}
