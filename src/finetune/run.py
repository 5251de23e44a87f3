"""Finetune: the folders of model import and preprocess -> the best model, proved.

    python -m finetune.run --task question_answering --preprocess_output P --model_selector_output M \\
        --pytorch_model_folder OUT/pytorch --mlflow_model_folder OUT/mlflow
"""

import gc
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune import __version__
from finetune.allocator import keep_freed_memory, out_of_memory, return_freed_memory
from finetune.cli import parse_task
from finetune.console import is_main_process, quiet_libraries, say, start
from finetune.errors import Fault, HandoffError, ModelError, run_main
from finetune.handoff import Preprocessed, SelectedModel, Trained, read_rows
from finetune.params import FinetuneParams, refuse_contradictions, refuse_unsupported, without_effect
from finetune.presets import with_preset
from finetune.resolved import Derived, write_resolved
from finetune.schedule import (
    Schedule,
    processes,
    refuse_unsupported_here,
    schedule,
    with_smaller_batch,
    without_effect_here,
)
from finetune.schema import non_default

if TYPE_CHECKING:
    from finetune.tasks.task import Task
    from finetune.training import FinetuneTrainer


def main(argv: list[str]) -> None:
    task_name, asked = parse_task(argv, "finetune", "finetune.run")
    start("finetune")
    leave_lone_process_group()
    params, preset = with_preset(asked, processes())
    refuse_contradictions(params)
    refuse_unsupported(params)
    selected = SelectedModel.read(params.model_selector_output, task_name)
    preprocessed = Preprocessed.read(params.preprocess_output, task_name)
    refuse_other_model(selected, preprocessed)
    steps = schedule(params, preprocessed.splits["train"].windows, processes())
    for line in (*without_effect(params), *without_effect_here(params, steps)):
        say(f"note: {line}")

    keep_freed_memory()
    from finetune import adapt, tracking
    from finetune.model import load_config, refuse_attention
    from finetune.tasks import load_task

    quiet_libraries()
    task = load_task(task_name)
    refuse_unsupported_here(params, processes())
    adapt.refuse(params, selected.model_type)
    refuse_attention(
        load_config(SelectedModel.model_folder(params.model_selector_output)), task, params.attn_implementation
    )
    resume = checkpoint_to_resume(params)
    with tracking.tracked(params):
        attempt, speed = train(asked, params, preset, task, preprocessed, resume)
        if is_main_process():
            save_and_prove(attempt, task, account(attempt, selected, preprocessed, speed))


def leave_lone_process_group() -> None:
    """Azure ML sets the variables of a process group for one process too; alone, DDP would only cost time."""
    if os.environ.get("WORLD_SIZE") == "1":
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def refuse_other_model(selected: SelectedModel, preprocessed: Preprocessed) -> None:
    """Raises: HandoffError if the data were encoded for a model of another family."""
    if selected.model_type != preprocessed.model_type:
        what = f"the data were encoded for a {preprocessed.model_type}, the model is a {selected.model_type}"
        raise HandoffError(Fault(what, fix="run preprocess with the model_selector_output that is given here"))


def load_windows(params: FinetuneParams) -> dict[str, Any]:
    """The encoded training and validation rows, memory-mapped."""
    from datasets import load_from_disk

    folder = params.preprocess_output
    splits = ("train", "validation")
    return {name: load_from_disk(Preprocessed.windows_folder(folder, name)).with_format("numpy") for name in splits}


def checkpoint_to_resume(params: FinetuneParams) -> Path | None:
    """The newest whole checkpoint if asked for; else old ones are moved out of the way."""
    from finetune import checkpoints

    if params.resume_from_checkpoint:
        newest = checkpoints.newest_whole(params.pytorch_model_folder)
        nothing = "resume_from_checkpoint is true, but there is no whole checkpoint: starting anew"
        say(f"going on from {newest.name}" if newest else nothing)
        return newest
    if is_main_process():
        checkpoints.move_aside(params.pytorch_model_folder)
    return None


class Attempt(NamedTuple):
    """One try to train: with auto_find_batch_size there may be several."""

    params: FinetuneParams
    wanted: FinetuneParams  # the same before any batch was too large
    steps: Schedule
    trainer: "FinetuneTrainer"
    restore: Callable[[Any], Any]  # undoes the adaptations of the model
    derived: list[Derived]


def train(
    asked: FinetuneParams,
    params: FinetuneParams,
    preset: list[Derived],
    task: "Task",
    preprocessed: Preprocessed,
    resume: Path | None,
) -> tuple[Attempt, dict[str, float]]:
    """Train; where memory runs out and auto_find_batch_size is true, shrink the batch and start from the first weights.

    `asked` is the command line, `params` the same with its preset. -> (the attempt that reached the end, its speed).
    """
    from accelerate.utils.memory import clear_device_cache

    from finetune import checkpoints

    data = load_windows(params)
    tried = checkpoints.with_found_batch(params, resume) if resume else params
    said: list[Derived] = []
    while True:
        attempt = build(tried, params, preset, task, preprocessed, data)
        tell(attempt, asked, said)
        try:
            speed = fit(attempt, resume)
            break
        except (RuntimeError, MemoryError) as error:
            batch = tried.per_device_train_batch_size
            if not params.auto_find_batch_size or batch == 1 or not out_of_memory(error):
                raise
            if resume and not params.keep_global_batch_size:
                why = "a resumed run can't change the windows of a step"
                fix = "--keep_global_batch_size true"
                raise ModelError(Fault(f"memory runs out with {batch} windows at a time", why=why, fix=fix)) from None
        tried = with_smaller_batch(tried)
        say(f"out of memory with per_device_train_batch_size {batch}; starting again with {batch_text(tried)}")
        said = attempt.derived
        del attempt
        gc.collect()
        clear_device_cache()
        return_freed_memory()
        if not resume and is_main_process():
            checkpoints.discard(params.pytorch_model_folder)
    if params.auto_find_batch_size:
        say(f"auto_find_batch_size: {batch_text(tried)} fits into memory")
    return attempt, speed


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
    task: "Task",
    preprocessed: Preprocessed,
    data: dict[str, Any],
) -> Attempt:
    """The model from the imported weights, adapted, in a Trainer. The batch of `params` may be smaller than wanted."""
    from transformers import set_seed

    from finetune import adapt, settings
    from finetune.model import load_model, load_tokenizer, store_state
    from finetune.training import FinetuneTrainer

    steps = schedule(params, len(data["train"]), processes())
    args = settings.training_arguments(params, steps)
    set_seed(params.seed)  # for the new head; the Trainer sets it again, and what full determinism needs
    source = SelectedModel.model_folder(params.model_selector_output)
    state = task.state(**preprocessed.state)
    model, new = load_model(source, task, state, params.ignore_mismatched_sizes, params.attn_implementation)
    if new:
        say(f"weights that start at random: {', '.join(new)}")
    store_state(model, state, task)
    attention = model.config._attn_implementation
    adapted = adapt.adapt(model, params)
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


def fit(attempt: Attempt, resume: Path | None) -> dict[str, float]:
    """Train to the end with the best model loaded. -> its speed; none if the run had ended before.

    Raises: ParameterError, ModelError.
    """
    import torch

    from finetune import checkpoints

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


def speed_of(trainer: "FinetuneTrainer") -> dict[str, float]:
    """Seconds and rates of the training that has just ended, said and logged."""
    from finetune.tracking import log_summary

    speed = trainer.throughput.rates(trainer.accelerator.gather)
    args = trainer.args
    batch = {name: vars(args)[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    log_summary({**speed, **batch})
    rates = f"{speed['train_samples_per_second']:.1f} samples/s, {speed['train_tokens_per_second']:.0f} tokens/s"
    warmup = trainer.throughput.warmup_steps
    without = f", without the first {warmup} steps" if trainer.throughput.without_warmup else ""
    say(f"trained {speed['train_seconds']:.0f} s: {rates}{without}")
    return speed


def account(attempt: Attempt, selected: SelectedModel, preprocessed: Preprocessed, speed: dict[str, float]) -> Trained:
    """What is known of the model when training ends, for its card and its report."""
    params, trainer = attempt.params, attempt.trainer
    return Trained(
        task=selected.task,
        base_model=selected.source_name,
        source=selected.source,
        model_type=selected.model_type,
        metric=params.metric_for_best_model,
        greater_is_better=trainer.args.greater_is_better,
        best_step=trainer.state.best_global_step,
        validation=trainer.best_metrics(),
        log=[entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry],
        device=f"{processes()} x {trainer.args.device.type}",
        speed=speed or earlier_speed(params, selected.task),
        splits=preprocessed.splits,
        parameters=non_default(params),
        versions={"finetune": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    )


def earlier_speed(params: FinetuneParams, task: str) -> dict[str, float]:
    """Of the run that had ended before, where it got so far as to save its model."""
    before = Trained.read(params.pytorch_model_folder, task)
    return before.speed if before else {}


def save_and_prove(attempt: Attempt, task: "Task", trained: Trained) -> None:
    """Write both model folders and load them again."""
    from finetune import save
    from finetune.model import store_state

    params, trainer = attempt.params, attempt.trainer
    adapted = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    state = task.calibrate(trainer.best_metrics(), trainer.task_state)
    if state != trainer.task_state:
        changed = {name: value for name, value in asdict(state).items() if value != vars(trainer.task_state)[name]}
        say(f"calibrated on validation: {', '.join(f'{name} {value:.4f}' for name, value in changed.items())}")
        store_state(adapted, state, task)
    tokenizer = trainer.processing_class
    unmerged = params.apply_lora and not params.merge_lora_weights
    save.clear(params.pytorch_model_folder)
    if unmerged:
        base = SelectedModel.model_folder(params.model_selector_output)
        save.save_adapter(adapted, base, tokenizer, params.pytorch_model_folder)
    model = attempt.restore(adapted)
    if params.attn_implementation == "flash_attention_2":
        model.set_attn_implementation("sdpa")  # what is saved is proved in 32 bits
    if not unmerged:
        save.save_pytorch(model, tokenizer, params.pytorch_model_folder)
    save.document(params.pytorch_model_folder, task, state, trained)
    save.save_mlflow(model, tokenizer, task, state, trained, params.mlflow_model_folder)
    rows = save.prove(
        model,
        tokenizer,
        trainer.validation_rows,
        task,
        state,
        params.pytorch_model_folder,
        params.mlflow_model_folder,
    )
    say(f"PyTorch model: {params.pytorch_model_folder}\nMLflow model:  {params.mlflow_model_folder}")
    say(f"both loaded afresh and equal to the trained model on {rows} rows")


if __name__ == "__main__":
    run_main(main)
