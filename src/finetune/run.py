"""Finetune: the folders of model import and preprocess -> the best model, proved.

    python -m finetune.run --task question_answering --preprocess_output P --model_selector_output M \\
        --pytorch_model_folder OUT/pytorch --mlflow_model_folder OUT/mlflow
"""

import gc
import os
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import __version__
from finetune.allocator import keep_freed_memory
from finetune.cli import parse_task
from finetune.console import is_main_process, quiet_libraries, say, start
from finetune.errors import Fault, HandoffError, ModelError, run_main
from finetune.handoff import Preprocessed, SelectedModel, Trained, read_rows
from finetune.params import FinetuneParams, refuse_unsupported, without_effect
from finetune.schedule import processes, refuse_unsupported_here, schedule
from finetune.schema import non_default

if TYPE_CHECKING:
    from finetune.tasks.task import Task
    from finetune.training import FinetuneTrainer


def main(argv: list[str]) -> None:
    task_name, params = parse_task(argv, "finetune", "finetune.run")
    start("finetune")
    leave_lone_process_group()
    refuse_unsupported(params)
    selected = SelectedModel.read(params.model_selector_output, task_name)
    preprocessed = Preprocessed.read(params.preprocess_output, task_name)
    refuse_other_model(selected, preprocessed)
    for line in without_effect(params):
        say(f"note: {line}")

    keep_freed_memory()
    from finetune import adapt, tracking
    from finetune.tasks import load_task

    quiet_libraries()
    refuse_unsupported_here(params, processes())
    adapt.refuse(params, selected.model_type)
    task = load_task(task_name)
    data = load_windows(params)
    schedule(params, len(data["train"]), processes())
    resume = checkpoint_to_resume(params)
    with tracking.tracked(params):
        trainer, restore, speed = train(params, task, preprocessed, data, resume)
        if is_main_process():
            save_and_prove(trainer, restore, params, task, account(trainer, params, selected, preprocessed, speed))


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


def train(
    asked: FinetuneParams, task: "Task", preprocessed: Preprocessed, data: dict[str, Any], resume: Path | None
) -> tuple["FinetuneTrainer", Any, dict[str, float]]:
    """Train; where memory runs out and auto_find_batch_size is true, halve the batch and start from the first weights.

    -> (trainer with the best model, what undoes the adaptations of the model, seconds and rates).
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    batch_size = asked.per_device_train_batch_size
    while True:
        params = replace(asked, per_device_train_batch_size=batch_size)
        trainer, restore = build(params, asked, task, preprocessed, data)
        try:
            return trainer, restore, fit(trainer, resume)
        except RuntimeError as error:
            if not asked.auto_find_batch_size or batch_size == 1 or not should_reduce_batch_size(error):
                raise
        batch_size //= 2
        say(f"out of memory with per_device_train_batch_size {2 * batch_size}; starting again with {batch_size}")
        del trainer, restore
        gc.collect()
        clear_device_cache()


def build(
    params: FinetuneParams, asked: FinetuneParams, task: "Task", preprocessed: Preprocessed, data: dict[str, Any]
) -> tuple["FinetuneTrainer", Any]:
    """The model from the imported weights, adapted, in a Trainer; and what undoes the adaptations."""
    from transformers import enable_full_determinism, set_seed

    from finetune import adapt, settings
    from finetune.model import load_model, load_tokenizer, store_state
    from finetune.training import FinetuneTrainer

    steps = schedule(params, len(data["train"]), processes())
    args = settings.training_arguments(params, steps)
    derived = settings.derived(params, asked, steps)
    for line in derived:
        say(str(line))
    if is_main_process():
        settings.write_resolved(asked, derived, params.pytorch_model_folder)

    (enable_full_determinism if params.enable_full_determinism else set_seed)(params.seed)
    source = SelectedModel.model_folder(params.model_selector_output)
    state = task.state(**preprocessed.state)
    model, new = load_model(source, task, state, params.ignore_mismatched_sizes)
    if new:
        say(f"weights that start at random: {', '.join(new)}")
    store_state(model, state, task)
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
        global_batch=steps.global_batch,
        keep_batches=task.keep_batches(params),
        callbacks=settings.callbacks(params, task.head_metric(state)),
    )
    where = f"{processes()} x {args.device.type}, precision {params.precision}"
    say(f"{len(data['train'])} windows, {steps.total_steps} steps of {steps.global_batch}, {where}")
    return trainer, adapted.restore


def fit(trainer: "FinetuneTrainer", resume: Path | None) -> dict[str, float]:
    """Train to the end with the best model loaded. -> seconds and rates. Raises: ParameterError, ModelError."""
    import torch

    from finetune import checkpoints
    from finetune.tracking import log_summary

    marker = checkpoints.Marker(trainer.global_batch, len(trainer.train_dataset))
    trainer.add_callback(checkpoints.MarkWhole(marker))
    if resume:
        checkpoints.refuse_other_steps(resume, marker)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if not all(torch.isfinite(p).all() for p in trainer.model.parameters()):
        fix = "a lower --learning_rate, a positive --max_grad_norm, or --precision bf16"
        raise ModelError(Fault("training diverged: the best weights are not finite", fix=fix))
    state = trainer.state
    if state.best_model_checkpoint is None:
        fix = "look at the validation loss above; a lower --learning_rate may help"
        raise ModelError(Fault("there is no best checkpoint: no evaluation gave a finite metric", fix=fix))
    seconds = time.perf_counter() - started - trainer.evaluation_seconds
    samples = int(trainer.accelerator.gather(trainer.windows_seen).sum())
    tokens = int(trainer.accelerator.gather(trainer.tokens_seen).sum())  # padding not counted
    rates = {"train_samples_per_second": samples / seconds, "train_tokens_per_second": tokens / seconds}
    speed = {"train_seconds": seconds, **rates}
    log_summary({**speed, "per_device_train_batch_size": trainer.args.train_batch_size})
    say(f"trained {seconds:.0f} s: {samples / seconds:.1f} samples/s, {tokens / seconds:.0f} tokens/s")
    say(f"best at step {state.best_global_step}: {trainer.args.metric_for_best_model} {state.best_metric:.4f}")
    return speed


def account(
    trainer: "FinetuneTrainer",
    params: FinetuneParams,
    selected: SelectedModel,
    preprocessed: Preprocessed,
    speed: dict[str, float],
) -> Trained:
    """What is known of the model when training ends, for its card and its report."""
    used = replace(params, per_device_train_batch_size=trainer.args.per_device_train_batch_size)
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
        speed=speed,
        splits=preprocessed.splits,
        parameters=non_default(used),
        versions={"finetune": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    )


def save_and_prove(
    trainer: "FinetuneTrainer", restore: Any, params: FinetuneParams, task: "Task", trained: Trained
) -> None:
    """Write both model folders and load them again."""
    from finetune import save
    from finetune.model import store_state

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
    model = restore(adapted)
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
