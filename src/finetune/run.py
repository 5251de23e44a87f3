"""Finetune: the folders of model import and preprocess -> the best model, proved.

    python -m finetune.run --task question_answering --preprocess_output P --model_selector_output M \\
        --pytorch_model_folder OUT/pytorch --mlflow_model_folder OUT/mlflow
"""

import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import __version__
from finetune.allocator import keep_freed_memory
from finetune.cli import parse_task
from finetune.console import is_main_process, quiet_libraries, say, start
from finetune.errors import Fault, HandoffError, run_main
from finetune.handoff import Preprocessed, SelectedModel, Trained
from finetune.params import FinetuneParams, refuse_contradictions, refuse_unsupported, without_effect
from finetune.presets import with_preset
from finetune.schedule import processes, refuse_unsupported_here, schedule, without_effect_here
from finetune.schema import non_default

if TYPE_CHECKING:
    from finetune.attempts import Attempt
    from finetune.tasks.task import Task


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
    from finetune.attempts import final_metrics, train
    from finetune.model import empty_model, load_config
    from finetune.tasks import load_task

    quiet_libraries()
    task = load_task(task_name)
    refuse_unsupported_here(params, processes())
    config = load_config(SelectedModel.model_folder(params.model_selector_output))
    adapt.refuse(params, empty_model(config, task, params.attn_implementation))
    resume = checkpoint_to_resume(params)
    with tracking.tracked(params):
        attempt, speed = train(asked, params, preset, task, preprocessed, resume)
        metrics = final_metrics(attempt)
        if is_main_process():
            save_and_prove(attempt, task, account(attempt, selected, preprocessed, speed, metrics))


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


def account(
    attempt: "Attempt",
    selected: SelectedModel,
    preprocessed: Preprocessed,
    speed: dict[str, float],
    metrics: dict[str, float],
) -> Trained:
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
        validation=metrics,
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


def save_and_prove(attempt: "Attempt", task: "Task", trained: Trained) -> None:
    """Write both model folders and load them again."""
    from finetune import save
    from finetune.model import store_state

    params, trainer = attempt.params, attempt.trainer
    adapted = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    state = task.calibrate(trained.validation, trainer.task_state)
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
    kinds = (", adapters beside the frozen model", ", adapters merged") if unmerged else ("", "")
    say(f"PyTorch model: {params.pytorch_model_folder}{kinds[0]}")
    say(f"MLflow model:  {params.mlflow_model_folder}{kinds[1]}")
    say(f"both loaded afresh and equal to the trained model on {rows} rows")


if __name__ == "__main__":
    run_main(main)
