"""Convert a finished model for OpenVINO and ONNX Runtime, measure each, and choose what to deploy.

finetune export --pytorch_model_folder OUT/pytorch --preprocess_output P --openvino_model_folder OUT/openvino
"""

import shutil
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from finetune import __version__
from finetune.backends import runtimes
from finetune.backends.chosen import Choice, Measured, best, choose, table
from finetune.core.console import quiet_libraries, say, start
from finetune.core.errors import DataError, Fault, ModelError, UnsupportedError
from finetune.core.outputs import bring_in, claimed, clear
from finetune.core.process import run_main
from finetune.core.types import Json
from finetune.core.world import World
from finetune.data.folders import Preprocessed, Trained, read_rows
from finetune.distributed.settlement import settle
from finetune.models.stored import intact, sums
from finetune.params.export import CALIBRATION, ExportParams
from finetune.params.finetune import OPENVINO_MODEL
from finetune.params.schema import outputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from finetune.backends.candidates import Candidate
    from finetune.backends.trial import Trial
    from finetune.tasks.task import Rows, State, Task

STAGED = ".exporting"
MLFLOW = "mlflow_model"  # sub-folder of the output: the same model as it is deployed


def main(argv: list[str]) -> None:
    settled = settle(ExportParams, argv, World.here(), "finetune export", begins_now=True)
    start("export", settled.notes)
    with claimed(outputs_of(settled.params)):
        export(settled.params)


def export(params: ExportParams) -> None:
    """Convert, compare, score and time the model in each backend; write the OpenVINO model and the account.

    Raises: UnsupportedError, at the end, if no backend reaches the target that was asked for.
    """
    require_packages(params)
    mlflow = params.mlflow_model_folder
    folder = intact.mlflow_weights(mlflow) if mlflow else params.pytorch_model_folder
    assert folder is not None  # by the rules
    intact.refuse_broken(folder)
    sums.refuse_damaged(folder)

    quiet_libraries()
    from finetune.backends import candidates, measured

    trial = trial_of(params, folder)
    clear(params.openvino_model_folder, OPENVINO_MODEL)
    staged = params.openvino_model_folder / STAGED
    ptq = params.quantization == "ptq"
    of_int8 = "" if trial.task.writes else ", in INT8 what is quantised"
    say(f"OpenVINO computes in 32 bits (INFERENCE_PRECISION_HINT f32){of_int8}")
    with measured.threads_of(trial.threads):
        found = [*candidates.in_pytorch(trial), *candidates.in_openvino(trial, params.quantization, staged)]
        found += candidates.in_onnx(trial, ptq, staged / "onnx") if params.onnx else []
        rows = measure(trial, found, params)
    for line in table(rows, trial.metric):
        say(line)
    choice = choose(rows, params.max_f1_drop, params.target_latency_ms)
    say(f"{'chosen' if choice.found else 'nothing is as fast as asked; nearest'}: {choice.row.name}, {choice.why}")
    write(trial, found, rows, choice, params)
    if not choice.found:
        fix = f"--target_latency_ms {choice.row.p50_ms:.3g}, a larger --max_f1_drop, or a smaller model"
        what = f"no backend takes {params.target_latency_ms:g} ms or less and keeps {trial.metric}"
        raise UnsupportedError(Fault(what, why=f"the nearest is {choice.row.name}: {choice.why}", fix=fix))


def require_packages(params: ExportParams) -> None:
    """Raise UnsupportedError, with the command that installs them, if packages are lacking."""
    runtimes.require(runtimes.OF_EXPORT, "finetune export", "use the model in PyTorch, as it is")
    if params.quantization == "ptq":
        runtimes.require(runtimes.OF_PTQ, "--quantization ptq", "--quantization none")
    if params.onnx:
        runtimes.require(runtimes.OF_ONNX, "--onnx true", "--onnx false")


def trial_of(params: ExportParams, folder: Path) -> "Trial":
    """Return the model and what it is tried on. Raises: an error if it, or its rows, can't be used."""
    import torch

    from finetune.backends.trial import Trial, compared, passes_of, timed, windows_of
    from finetune.data.batches import stack
    from finetune.models.stored.configs import stored_state
    from finetune.models.stored.tokenizers import load_tokenizer

    task = task_of(params, folder)
    Preprocessed.read(params.preprocess_output, task.name)
    state = stored_state(folder, task)
    assert state is not None
    model, rounded = models_of(params, folder, task, state)
    tokenizer = load_tokenizer(folder, task)
    rows = rows_to_score(params, task, state)
    windows = windows_of(rows, task, tokenizer, state, len(rows))
    ranges: list[Json] = []
    if not task.writes:
        train = read_rows(Preprocessed.rows_file(params.preprocess_output, "train"), task.data.damage)
        ranges = passes_of(train, task, tokenizer, state, params.calibration_samples)
    if not windows or not (ranges or task.writes):
        raise DataError(Fault(f"no row of {params.preprocess_output} can be encoded for this model"))
    padding = task.data.padding(tokenizer)
    alone, together = timed(windows, padding, params.per_device_eval_batch_size)
    of_int8 = f"INT8 has its ranges of {len(ranges)} windows of train" if ranges else "INT8 is that of weights alone"
    say(f"{len(rows)} rows of validation are scored" + (f"; {of_int8}" if params.quantization == "ptq" else ""))
    return Trial(
        folder=folder,
        model=model.eval(),
        rounded=rounded,
        tokenizer=tokenizer,
        task=task,
        state=state,
        rows=rows,
        alone=alone,
        together=together,
        compared=compared(passes_of(rows, task, tokenizer, state, len(rows)), padding),
        calibration=[stack([window], padding) for window in ranges],
        threads=params.threads or torch.get_num_threads(),
        batch_size=params.per_device_eval_batch_size,
    )


def task_of(params: ExportParams, folder: Path) -> "Task[State]":
    """Return the task of a finished model. Raises: ModelError if it names none, UnsupportedError if the model isn't
    converted as asked."""
    from finetune.models.stored import exportable
    from finetune.models.stored.configs import load_config, stored_task
    from finetune.tasks import load_task

    name = stored_task(folder)
    if name is None:
        fix = "give the pytorch_model_folder or mlflow_model_folder of a run"
        raise ModelError(Fault(f"{folder} is no finished model", why="its config.json names no task", fix=fix))
    task, config = load_task(name), load_config(folder)
    if why := exportable.why_not(config, task.writes):
        fix = "finetune another one, or use the model in PyTorch, as it is"
        raise UnsupportedError(Fault(f"finetune export of a {config.model_type}", why=why, fix=fix))
    if task.writes and params.quantization == "qat":
        what, why = f"--quantization qat for a model of {task.name}", "apply_qat trains models that read"
        raise UnsupportedError(Fault(what, why=why, fix="--quantization ptq"))
    if task.writes and params.calibration_samples != CALIBRATION:
        say(f"note: calibration_samples {params.calibration_samples} has no effect: INT8 is that of weights alone")
    return task


def models_of(
    params: ExportParams, folder: Path, task: "Task[State]", state: "State"
) -> "tuple[PreTrainedModel, PreTrainedModel | None]":
    """Return the model, and the one that was trained if that was with rounding. Raises: ModelError if weights are
    lacking, or the rounding that is asked for."""
    from finetune.models.adapt import fake_quantisation
    from finetune.models.loading import load_model

    model, new = load_model(folder, task, state)
    if new:
        raise ModelError(Fault(f"{folder} lacks weights", why=", ".join(new), fix=intact.AGAIN))
    rounded = fake_quantisation.as_trained(model)
    if params.quantization == "qat" and rounded is None:
        why = f"its config.json has no {fake_quantisation.KEY}: it was trained without rounding"
        fix = "--quantization ptq, or train it with --apply_qat true"
        raise ModelError(Fault(f"--quantization qat for {folder}", why=why, fix=fix))
    return model, rounded


def rows_to_score(params: ExportParams, task: "Task[State]", state: "State") -> "Rows":
    """Return rows of validation that have gold. Raises: DataError if there is none."""
    from finetune.data.batches import spread

    file = Preprocessed.rows_file(params.preprocess_output, "validation")
    rows = [row for row in read_rows(file, task.data.damage) if task.data.has_gold(row)]
    if not rows:
        fix = "run preprocess with --validation_file_path of annotated rows"
        raise DataError(Fault(f"no row of {file} has {task.data.gold}", why="backends are scored on them", fix=fix))
    task.scoring.refuse(rows, state)
    return spread(rows, params.max_scored_rows)


def measure(trial: "Trial", found: Sequence["Candidate"], params: ExportParams) -> list[Measured]:
    """Return what each backend costs, in the same order."""
    from finetune.backends.candidates import account, score_of
    from finetune.backends.measured import speeds

    scores = []
    for one in found:
        say(f"score {one.name}")
        scores.append(score_of(trial, one))
    say(f"time all in turns, {params.benchmark_seconds:g} s, {trial.threads} threads each")
    answers = {one.name: partial(trial.answer, one.model) for one in found}
    speed = speeds(answers, trial.alone, trial.together, params.benchmark_seconds)
    return [account(trial, one, score, speed[one.name]) for one, score in zip(found, scores, strict=True)]


def write(
    trial: "Trial", found: Sequence["Candidate"], rows: Sequence[Measured], choice: Choice, params: ExportParams
) -> None:
    """Write the best of OpenVINO's models, what ONNX was asked for, and the account, and say where they are."""
    from finetune.backends import page

    out = params.openvino_model_folder
    by_name = {one.name: one for one in found}
    ours = best([row for row in rows if by_name[row.name].kind == "OpenVINO"], rows[0], params.max_f1_drop)
    onnx = [one for one in found if one.kind == "ONNX Runtime"]
    write_model(trial, by_name[ours.name].path.parent, [file for one in onnx for file in one.files], out)
    trained = Trained.read(trial.folder, trial.task.name)
    name = trained.base_name if trained else trial.folder.name
    page.write(out, name, trial.metric, rows, choice, facts(trial, params, ours))
    say(f"{ours.name}: {out}")
    say(f"{ours.name}, to deploy: {out / MLFLOW}")
    for one in onnx:
        say(f"{one.name}: {' and '.join(str(out / file.name) for file in one.files)}")
    say(f"report: {out / 'backends.html'}")


def write_model(trial: "Trial", place: Path, onnx: Sequence[Path], out: Path) -> None:
    """Move the OpenVINO model of a place into the folder, beside it what answers are encoded and decoded with, and an
    MLflow model of all that."""
    from finetune.models.stored.places import leave_out_places
    from finetune.results.saving import SERVED, SERVED_IN_OPENVINO, WRITING_IN_OPENVINO, save_served

    place = place.rename(place.with_name(SERVED))
    trial.tokenizer.save_pretrained(place)
    leave_out_places(place)
    sums.write_sums(place)
    if (trial.folder / Trained.FILE).is_file():
        shutil.copyfile(trial.folder / Trained.FILE, place / Trained.FILE)
    (out / MLFLOW).mkdir()
    packages = WRITING_IN_OPENVINO if trial.task.writes else SERVED_IN_OPENVINO
    save_served(place, trial.task, trial.state, out / MLFLOW, packages)
    for path in onnx:
        shutil.move(path, place / path.name)
    bring_in(place, out)
    shutil.rmtree(out / STAGED)


def facts(trial: "Trial", params: ExportParams, openvino: Measured) -> Json:
    """Return how it was measured, for the account."""
    packages = ["torch", "transformers", *runtimes.OF_EXPORT]
    packages += runtimes.OF_PTQ if params.quantization == "ptq" else ()
    packages += runtimes.OF_ONNX if params.onnx else ()
    return {
        "task": trial.task.name,
        "writes": trial.task.writes,
        "openvino_model": openvino.name,
        "max_f1_drop": params.max_f1_drop,
        "target_latency_ms": params.target_latency_ms,
        "scored_rows": len(trial.rows),
        "tokens": int(median(batch["input_ids"].shape[1] for batch in trial.alone)),
        "batch": trial.batch_size,
        "threads": trial.threads,
        "calibration_samples": len(trial.calibration) if params.quantization == "ptq" else 0,
        "inference_precision_hint": "f32",
        "versions": {"finetune": __version__, **{name: version(name) for name in packages}},
    }


if __name__ == "__main__":
    run_main(main)
