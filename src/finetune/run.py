"""Finetune the model of model import on the data of preprocess, and prove the best model.

    python -m finetune.run --task question_answering --preprocess_output P --model_selector_output M \\
        --pytorch_model_folder OUT/pytorch --mlflow_model_folder OUT/mlflow
"""

import os
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import __version__
from finetune.core.console import quiet_libraries, say, start
from finetune.core.errors import Fault, HandoffError
from finetune.core.launch import adopt_launcher, found_group_of_one, is_main_process, world_size
from finetune.core.outputs import Output, claimed, clear
from finetune.core.process import run_main
from finetune.core.reading import Unreadable, json_object
from finetune.core.world import World
from finetune.data.folders import Preprocessed, SelectedModel, Trained
from finetune.distributed import preemption
from finetune.distributed.failure import joined
from finetune.distributed.hangs import pulse
from finetune.distributed.settlement import Settled, check_model, settle_task
from finetune.export import export
from finetune.models.memory import keep_freed_memory
from finetune.models.stored import intact, sums
from finetune.params.export import ExportParams
from finetune.params.finetune import MLFLOW_MODEL, PYTORCH_MODEL, Export, FinetuneParams
from finetune.params.schema import non_default, outputs_of
from finetune.training.schedule import schedule, without_effect_here

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from finetune.tasks.task import State, Task
    from finetune.training.attempts import Attempt


def main(argv: list[str]) -> None:
    task_name, settled = settle_task(adopt_launcher(argv), "finetune", "finetune.run")
    start("finetune")
    if settled.deepspeed:
        found_group_of_one()
    keep_freed_memory()
    if settled.params.enable_full_determinism:  # cuBLAS reads it at its first product, before the Trainer sets it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    params = settled.params
    group = joined(params.pytorch_model_folder, params.hang_timeout)
    with preemption.listening(), group, claimed(written_here(params)):
        finetune(task_name, settled)


def written_here(params: FinetuneParams) -> list[Output]:
    """Return the folders that this process writes into: the main one does, and knows old checkpoints by their marks."""
    from finetune.training import checkpoints

    if not is_main_process():
        return []
    known = checkpoints.known(params.pytorch_model_folder)
    return [
        replace(output, known=known if output.folder == params.pytorch_model_folder else frozenset())
        for output in outputs_of(params)
        if output.parameter != "--openvino_model_folder" or wants_openvino(params)
    ]


def finetune(task_name: str, settled: Settled[FinetuneParams]) -> None:
    """Read the folders, load the data and the model, train, save the best model and prove it; say how long it took."""
    params = settled.params
    selected, preprocessed = read_inputs(params, task_name)
    notes = list(settled.notes)
    if not params.max_tokens_per_batch:  # otherwise windows have to be loaded to know the steps
        notes += without_effect_here(params, schedule(params, preprocessed.splits["train"].windows, world_size()))
    for line in notes:
        say(f"note: {line}")

    quiet_libraries()
    from finetune.models.facts import facts_of
    from finetune.models.loading import empty_model
    from finetune.models.stored.configs import load_config
    from finetune.tasks import load_task
    from finetune.training import tracking
    from finetune.training.attempts import final_metrics, preflighted, train
    from finetune.training.gathering import gathered_model
    from finetune.training.throughput import Parts

    pulse.reach()
    parts = Parts()
    parts.done("start")
    task = load_task(task_name)
    config = load_config(SelectedModel.model_folder(params.model_selector_output))
    check_model(settled, World.here(), facts_of(empty_model(config, task, params.attn_implementation)))
    settled = preflighted(settled, task, preprocessed, config)
    checkpoint = checkpoint_to_resume(settled.params)
    with tracking.tracked(params):
        attempt, speed = train(settled, task, preprocessed, checkpoint)
        pulse.reach("end")
        parts.done("load")
        loop, evaluation = attempt.trainer.throughput.loop_seconds, attempt.trainer.throughput.evaluation_seconds
        parts.move(loop - evaluation, "load", "train")
        parts.move(evaluation, "load", "validate")
        metrics = final_metrics(attempt)
        pulse.reach()
        parts.done("validate")
        model = gathered_model(attempt.trainer, attempt.params, attempt.fresh)
        pulse.reach()
        if model is not None and is_main_process():
            trained = account(attempt, selected, preprocessed, speed, metrics)
            saved, state = save(attempt, model, task, trained)
            pulse.mark()
            parts.done("save")
            prove(attempt, saved, task, state)
            pulse.mark()
            keep_the_best(attempt)
            parts.done("prove")
            if wants_openvino(params):
                write_openvino(params)
                parts.done("export")
            say(f"time: {parts}")


def read_inputs(params: FinetuneParams, task_name: str) -> tuple[SelectedModel, Preprocessed]:
    """Return what the folders of model import and preprocess hold. Raises: HandoffError or ModelError if they are of no
    use."""
    selected = SelectedModel.read(params.model_selector_output, task_name)
    preprocessed = Preprocessed.read(params.preprocess_output, task_name)
    refuse_other_model(selected, preprocessed)
    folder = SelectedModel.model_folder(params.model_selector_output)
    intact.refuse_broken(folder)
    sums.refuse_damaged(folder)
    return selected, preprocessed


def refuse_other_model(selected: SelectedModel, preprocessed: Preprocessed) -> None:
    """Raise HandoffError if the data were encoded for a model of another family."""
    if selected.model_type != preprocessed.model_type:
        what = f"the data were encoded for a {preprocessed.model_type}, the model is a {selected.model_type}"
        raise HandoffError(Fault(what, fix="run preprocess with the model_selector_output that is given here"))


def checkpoint_to_resume(params: FinetuneParams) -> Path | None:
    """Return the newest complete checkpoint if asked for, or if this same command was interrupted; else move old ones
    out of the way."""
    from finetune.distributed import process_group
    from finetune.training import checkpoints, resume

    folder = params.pytorch_model_folder
    process_group.refuse_other_folders(folder)
    if not params.resume_from_checkpoint:
        same: Path | None = process_group.broadcast_from_main(lambda: resume.interrupted(params, saved_run(folder)))
        if same is None:
            if is_main_process():
                checkpoints.move_aside(folder)
            return None
        say(f"this run was interrupted after {same.name} (to start anew, give another --pytorch_model_folder)")
    newest: Path | None = process_group.broadcast_from_main(lambda: checkpoints.newest_complete(folder))
    nothing = "resume_from_checkpoint is true, but there is no complete checkpoint: starting anew"
    say(f"going on from {newest.name}" if newest else nothing)
    return newest


def saved_run(folder: Path) -> str | None:
    """Return the name of the run whose model lies in the folder; None if that can't be known."""
    try:
        return json_object(folder / Trained.FILE).get("run")
    except Unreadable:
        return None


def account(
    attempt: "Attempt",
    selected: SelectedModel,
    preprocessed: Preprocessed,
    speed: dict[str, float],
    metrics: dict[str, float],
) -> Trained:
    """Return what is known of the model when training ends, for its card and its report."""
    params, trainer = attempt.params, attempt.trainer
    of_hub = selected.source == "huggingface_id"
    return Trained(
        task=selected.task,
        base_model=selected.hub_id or Path(selected.source_name).name,
        source="pytorch_model_path" if of_hub and selected.hub_id is None else selected.source,
        model_type=selected.model_type,
        metric=params.metric_for_best_model,
        greater_is_better=bool(trainer.args.greater_is_better),
        best_step=trainer.state.best_global_step or 0,
        validation=metrics,
        log=[entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry],
        device=f"{world_size()} x {trainer.args.device.type}",
        speed=speed or earlier_speed(params, selected.task),
        splits=preprocessed.splits,
        parameters=non_default(params),
        versions={"finetune": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        run=trainer.marker.name,
    )


def earlier_speed(params: FinetuneParams, task: str) -> dict[str, float]:
    """Return the speed of the run that had ended before, where it got so far as to save its model."""
    before = Trained.read(params.pytorch_model_folder, task)
    return before.speed if before else {}


def save(
    attempt: "Attempt", adapted: "PreTrainedModel", task: "Task[State]", trained: Trained
) -> "tuple[PreTrainedModel, State]":
    """Write both model folders. Return the model as it is saved, and its state."""
    from finetune.models.stored.configs import store_state
    from finetune.results import saving

    params, trainer = attempt.params, attempt.trainer
    state = task.decoding.calibrate(trained.validation, trainer.task_state)
    if state != trainer.task_state:
        changed = {name: value for name, value in asdict(state).items() if value != vars(trainer.task_state)[name]}
        say(f"calibrated on validation: {', '.join(f'{name} {value:.4f}' for name, value in changed.items())}")
        store_state(adapted, state, task)
    tokenizer = trainer.tokenizer
    unmerged = params.apply_lora and not params.merge_lora_weights
    clear(params.pytorch_model_folder, PYTORCH_MODEL)
    clear(params.mlflow_model_folder, MLFLOW_MODEL)
    if unmerged:
        base = SelectedModel.model_folder(params.model_selector_output)
        saving.save_adapter(adapted, base, tokenizer, params.pytorch_model_folder)
    model = attempt.restore(adapted)
    if params.attn_implementation == "flash_attention_2":
        model.set_attn_implementation("sdpa")  # what is saved is proved in 32 bits
    if not unmerged:
        saving.save_pytorch(model, tokenizer, params.pytorch_model_folder)
    saving.document(params.pytorch_model_folder, task, state, trained)
    saving.save_mlflow(model, tokenizer, task, state, trained, params.mlflow_model_folder)
    return model, state


def prove(attempt: "Attempt", model: "PreTrainedModel", task: "Task[State]", state: "State") -> None:
    """Load both folders again and compare them with the model."""
    from finetune.results import proof

    params, trainer = attempt.params, attempt.trainer
    rows, windows = proof.choose(trainer.validation_rows, trainer.eval_dataset, task)
    say(f"prove the saved model: {len(rows)} rows of validation, {windows} windows")
    folders = params.pytorch_model_folder, params.mlflow_model_folder
    proof.prove(model, trainer.tokenizer, rows, task, state, *folders)
    unmerged = params.apply_lora and not params.merge_lora_weights
    kinds = (", adapters beside the frozen model", ", adapters merged") if unmerged else ("", "")
    say(f"PyTorch model: {params.pytorch_model_folder}{kinds[0]}")
    say(f"MLflow model:  {params.mlflow_model_folder}{kinds[1]}")
    say(f"both loaded afresh and equal to the trained model on {len(rows)} rows")


def keep_the_best(attempt: "Attempt") -> None:
    """Remove all but the best checkpoint with save_total_limit 1: the newest is of no use once the model is saved."""
    from finetune.training import checkpoints

    if attempt.params.save_total_limit == 1:
        best = Path(str(attempt.trainer.state.best_model_checkpoint))
        checkpoints.keep(attempt.params.pytorch_model_folder, 1, {best})


def wants_openvino(params: FinetuneParams) -> bool:
    return isinstance(params, Export) and params.quantization != "none"


def write_openvino(params: FinetuneParams) -> None:
    """Write the OpenVINO model, as finetune export does with the model that was saved."""
    assert isinstance(params, Export) and params.openvino_model_folder is not None  # by the rules
    say("[export]")
    export(
        ExportParams(
            pytorch_model_folder=params.pytorch_model_folder,
            preprocess_output=params.preprocess_output,
            quantization=params.quantization,
            openvino_model_folder=params.openvino_model_folder,
        )
    )


if __name__ == "__main__":
    run_main(main)
