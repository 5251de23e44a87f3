"""Finetune: the folders of model import and preprocess -> the best model, proved.

    python -m finetune.run --task question_answering --preprocess_output P --model_selector_output M \\
        --pytorch_model_folder OUT/pytorch --mlflow_model_folder OUT/mlflow
"""

import gc
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune.allocator import keep_freed_memory
from finetune.cli import parse_task
from finetune.console import is_main_process, quiet_libraries, say, start
from finetune.errors import Fault, HandoffError, run_main
from finetune.handoff import Preprocessed, SelectedModel, read_rows
from finetune.params import FinetuneParams, refuse_unsupported, without_effect

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
    from finetune import adapt, settings
    from finetune.tasks import load_task

    quiet_libraries()
    settings.refuse_precision(params)
    adapt.refuse(params, selected.model_type)
    task = load_task(task_name)
    trainer, restore = train(params, task, preprocessed)
    if is_main_process():
        save_and_prove(trainer, restore, params, task)


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


def train(params: FinetuneParams, task: "Task", preprocessed: Preprocessed) -> tuple["FinetuneTrainer", Any]:
    """Train, halving the batch and starting afresh where memory runs out and auto_find_batch_size is true."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    while True:
        try:
            return train_once(params, task, preprocessed)
        except RuntimeError as error:
            batch_size = params.per_device_train_batch_size
            if not params.auto_find_batch_size or batch_size == 1 or not should_reduce_batch_size(error):
                raise
            say(f"out of memory with per_device_train_batch_size {batch_size}; starting again with {batch_size // 2}")
            params = replace(params, per_device_train_batch_size=batch_size // 2)
        gc.collect()
        clear_device_cache()


def train_once(params: FinetuneParams, task: "Task", preprocessed: Preprocessed) -> tuple["FinetuneTrainer", Any]:
    """One training run from the imported weights, or from a checkpoint. -> (trainer with the best model, restore)."""
    from datasets import load_from_disk
    from transformers import enable_full_determinism, set_seed

    from finetune import adapt, checkpoints, settings, tracking
    from finetune.model import load_model, load_tokenizer, store_state
    from finetune.training import FinetuneTrainer

    data = params.preprocess_output
    windows = {
        name: load_from_disk(Preprocessed.windows_folder(data, name)).with_format("numpy")
        for name in ("train", "validation")
    }
    steps = settings.schedule(params, len(windows["train"]), settings.processes())
    args = settings.training_arguments(params, steps)
    found = settings.derived(params, steps)
    for line in found:
        say(str(line))
    if is_main_process():
        settings.write_resolved(params, found, params.pytorch_model_folder)

    (enable_full_determinism if params.enable_full_determinism else set_seed)(params.seed)
    model, new = load_model(
        SelectedModel.model_folder(params.model_selector_output), task, params.ignore_mismatched_sizes
    )
    if new:
        say(f"weights that start at random: {', '.join(new)}")
    state = task.state(**preprocessed.state)
    store_state(model, state, task)
    adapted = adapt.adapt(model, params)
    trainer = FinetuneTrainer(
        model=adapted.model,
        args=args,
        task=task,
        state=state,
        train=windows["train"],
        validation=windows["validation"],
        validation_rows=read_rows(Preprocessed.rows_file(data, "validation")),
        tokenizer=load_tokenizer(Preprocessed.tokenizer_folder(data)),
        global_batch=steps.global_batch,
        keep_batches=params.eval_accumulation_steps,
        callbacks=[tracking.Progress(task.head_metric), tracking.MlflowMetrics(), *settings.callbacks(params)],
    )
    say(
        f"{len(windows['train'])} windows, {steps.total_steps} steps of {steps.global_batch}, precision "
        f"{params.precision}, {settings.processes()} x {args.device.type}"
    )
    with tracking.tracked(params):
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint_to_resume(params, checkpoints))
        summarize(trainer, time.perf_counter() - started)
    return trainer, adapted.restore


def checkpoint_to_resume(params: FinetuneParams, checkpoints: Any) -> str | None:
    """The newest whole checkpoint if asked for; else old ones are moved out of the way."""
    if params.resume_from_checkpoint:
        newest = checkpoints.newest_whole(params.pytorch_model_folder)
        nothing = "resume_from_checkpoint is true, but there is no whole checkpoint: starting anew"
        say(f"going on from {newest.name}" if newest else nothing)
        return str(newest) if newest else None
    if is_main_process():
        checkpoints.move_aside(params.pytorch_model_folder)
    return None


def summarize(trainer: "FinetuneTrainer", seconds: float) -> None:
    """Speed and the best step, for the user and for MLflow. Tokens and samples exclude padding."""
    from finetune.tracking import log_summary

    tokens = int(trainer.accelerator.gather(trainer.tokens_seen).sum())
    samples = int(trainer.accelerator.gather(trainer.windows_seen).sum())
    state = trainer.state
    training = seconds - sum(entry.get("eval_runtime", 0.0) for entry in state.log_history)
    rates = {"train_samples_per_second": samples / training, "train_tokens_per_second": tokens / training}
    log_summary({"train_seconds": training, **rates})
    say(f"trained {training:.0f} s: {samples / training:.1f} samples/s, {tokens / training:.0f} tokens/s")
    say(f"best at step {state.best_global_step}: {trainer.args.metric_for_best_model} {state.best_metric:.4f}")


def save_and_prove(trainer: "FinetuneTrainer", restore: Any, params: FinetuneParams, task: "Task") -> None:
    """Write both model folders and load them again."""
    from finetune import save

    adapted = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    tokenizer = trainer.processing_class
    unmerged = params.apply_lora and not params.merge_lora_weights
    if unmerged:
        base = SelectedModel.model_folder(params.model_selector_output)
        save.save_adapter(adapted, base, tokenizer, params.pytorch_model_folder)
    model = restore(adapted)
    if not unmerged:
        save.save_pytorch(model, tokenizer, params.pytorch_model_folder)
    save.save_mlflow(model, tokenizer, task, params.mlflow_model_folder)
    rows = save.prove(
        model,
        tokenizer,
        trainer.validation_rows,
        task,
        trainer.task_state,
        params.pytorch_model_folder,
        params.mlflow_model_folder,
    )
    say(f"PyTorch model: {params.pytorch_model_folder}\nMLflow model:  {params.mlflow_model_folder}")
    say(f"both loaded afresh and equal to the trained model on {rows} rows")


if __name__ == "__main__":
    run_main(main)
