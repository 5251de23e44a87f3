"""Evaluate a model on rows: write predictions.jsonl, report.html, and metrics.json where the rows have gold.

python -m finetune.evaluation --task question_answering --test_data F --pytorch_model_folder M --evaluation_result OUT
"""

import json
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.core.console import progress, quiet_libraries, say, some, start
from finetune.core.errors import DataError, Fault, ModelError
from finetune.core.outputs import claimed, clear
from finetune.core.process import run_main
from finetune.core.types import Json
from finetune.core.world import World
from finetune.data.folders import SPLITS, Preprocessed, Trained, read_rows
from finetune.data.readers import read_table
from finetune.data.table import Audit, StoredRows
from finetune.distributed.settlement import Settled, check_model, settle_task
from finetune.models.stored import intact, sums
from finetune.params.evaluation import EVALUATED, EvaluationParams
from finetune.params.schema import non_default, outputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from finetune.results.published import Asked
    from finetune.results.report import Findings
    from finetune.tasks.task import Breakdown, Prediction, Rows, State, Task


def main(argv: list[str]) -> None:
    task_name, settled = settle_task(argv, "evaluation", "finetune.evaluation")
    start("evaluation", settled.notes)
    with claimed(outputs_of(settled.params)):
        evaluate(settled, task_name)


def evaluate(settled: Settled[EvaluationParams], task_name: str) -> None:
    """Read rows and model, and write the predictions, the metrics and the report."""
    params = settled.params
    preprocessed = Preprocessed.read(params.preprocess_output, task_name) if params.preprocess_output else None
    folder = model_folder(params)

    quiet_libraries()
    from transformers import set_seed

    from finetune.models.facts import facts_of
    from finetune.models.loading import empty_model
    from finetune.models.prediction import Watch, predict_parts
    from finetune.models.stored.configs import load_config
    from finetune.models.stored.tokenizers import load_tokenizer
    from finetune.results import published, report
    from finetune.tasks import load_task
    from finetune.training.tracking import log_evaluation

    task = load_task(task_name)
    asked = published.asked(params, task.scoring.published)
    rows, audit = read_test_rows(params, task, preprocessed)
    check_model(settled, World.here(), facts_of(empty_model(load_config(folder), task)))
    trained = Trained.read(folder, task_name)
    state = state_of(params, folder, task, preprocessed)
    task.scoring.refuse(rows, state)
    lacking = say_lacking(task.scoring.lacking(rows, state))
    set_seed(params.seed)
    model = loaded_model(params, folder, task, state)
    unanswerable = Audit()
    tokenizer = load_tokenizer(folder, task)
    clear(params.evaluation_result, EVALUATED)
    started = time.perf_counter()
    findings = report.Findings()
    with memory_of(params), progress(len(rows), "evaluate") as bar:
        parts = predict_parts(
            model,
            tokenizer,
            rows,
            task,
            state,
            params.per_device_eval_batch_size,
            params.eval_accumulation_steps,
            unanswerable,
            Watch(bar, task),
        )
        kept = write_predictions(params.evaluation_result / "predictions.jsonl", rows, parts, task, state, findings)
    seconds = time.perf_counter() - started
    for line in unanswerable.lines():
        say(line)
    device = model.device.type
    say(f"{len(rows)} rows in {seconds:.1f} s on {device} ({len(rows) / seconds:.0f} rows/s)")
    facts = {"device": device, "seconds": seconds, "rows_per_second": len(rows) / seconds}
    facts |= {"rows_dropped": audit.dropped, "problems": audit.problems | unanswerable.problems}
    facts |= {"classes_lacking": lacking} if lacking else {}
    metrics = params.evaluation_result / "metrics.json"
    scores, breakdown, by_published_name = write_metrics(metrics, rows, kept, task, state, facts, asked)
    log_evaluation(scores | by_published_name)
    name = trained.base_name if trained else folder.name
    page = params.evaluation_result / "report.html"
    report.write(page, task, name, findings, scores, breakdown, facts, state, non_default(params), trained)
    say(f"report: {page}")


@contextmanager
def memory_of(params: EvaluationParams) -> Iterator[None]:
    """Raise ModelError, with a smaller batch, in place of what libraries raise when memory runs out."""
    from finetune.models.memory import out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        batch = params.per_device_eval_batch_size
        fix = f"--per_device_eval_batch_size {batch // 2}" if batch > 1 else "a machine with more memory"
        raise ModelError(Fault(f"memory runs out with {batch} windows at a time", fix=fix)) from None


def model_folder(params: EvaluationParams) -> Path:
    """Return the folder of config, tokenizer and weights. Raises: ModelError if it is broken, UnsupportedError if the
    packages that compute it are lacking."""
    openvino: Path | None = params.openvino_model_folder
    if openvino is None:
        mlflow = params.mlflow_model_folder
        folder = intact.mlflow_weights(mlflow) if mlflow else params.pytorch_model_folder
        assert folder is not None  # by the rules
        intact.refuse_broken(folder)
        sums.refuse_damaged(folder)
        return folder
    from finetune.backends import runtimes
    from finetune.models.openvino import refuse_no_ir

    runtimes.require(runtimes.OF_EXPORT, "--openvino_model_folder", "--pytorch_model_folder FOLDER")
    refuse_no_ir(openvino)
    intact.raise_all([*intact.config_faults(openvino), *intact.tokenizer_faults(openvino)])
    sums.refuse_damaged(openvino)
    return openvino


def loaded_model(params: EvaluationParams, folder: Path, task: "Task[State]", state: "State") -> "PreTrainedModel":
    """Return the model where it computes, in the precision that is asked for; of OpenVINO one that is called alike."""
    import torch

    from finetune.models.loading import load_model
    from finetune.models.prediction import compute_in

    if params.openvino_model_folder:
        from finetune.backends.called import load_openvino
        from finetune.models.openvino import PRECISIONS

        say(f"OpenVINO computes with INFERENCE_PRECISION_HINT {PRECISIONS[params.precision]}")
        return load_openvino(folder, task, params.precision)
    model, new = load_model(folder, task, state, ignore_mismatched_sizes=True)
    if new:
        say(f"warning: these weights are random, the scores are those of an untrained model: {', '.join(new)}")
    return compute_in(model.to("cuda" if torch.cuda.is_available() else "cpu"), params.precision)


def say_lacking(lacking: dict[str, int]) -> dict[str, int]:
    """Print which gold classes the model lacks, and return them."""
    if lacking:
        named = some([f"{name} ({count})" for name, count in lacking.items()])
        say(f"warning: {sum(lacking.values())} gold words can't be right, the model has no such class: {named}")
    return lacking


def read_test_rows(
    params: EvaluationParams, task: "Task[State]", preprocessed: Preprocessed | None
) -> tuple[StoredRows, Audit]:
    """Return the test split of preprocess, or a file, and its audit. Raises: DataError if no row is usable."""
    if preprocessed and params.preprocess_output:
        rows = read_rows(Preprocessed.rows_file(params.preprocess_output, "test"), task.data.damage)
        audit = Audit(preprocessed.splits["test"].problems)
    else:
        assert params.test_data is not None  # by the rules
        audit = Audit()
        rows = task.data.validate(read_table(params.test_data), params, audit)
    for line in (*audit.notes, *audit.lines()):
        say(line)
    if not rows:
        raise DataError(Fault(f"no usable row in {params.test_data}", why="; ".join(audit.lines())))
    return rows, audit


def state_of(params: EvaluationParams, folder: Path, task: "Task[State]", preprocessed: Preprocessed | None) -> "State":
    """Return how to decode: as the model was trained, else as its data were prepared, else by the defaults; what is
    given as a parameter wins."""
    from finetune.models.stored.tokenizers import imported

    given = vars(params)
    asked = {name: given[name] for name in task.decoding.request_fields if given[name] is not None}
    state = known_state(folder, task, preprocessed, given)
    return task.decoding.asked(state, asked, imported(folder, task)) if asked else state


def known_state(folder: Path, task: "Task[State]", preprocessed: Preprocessed | None, given: Json) -> "State":
    """Return the state that the model has, or its data, or that of preprocess with the parameters that are given here;
    a model that comes from elsewhere may know better by its config."""
    from finetune.models.stored.configs import load_config, stored_state
    from finetune.models.stored.tokenizers import imported
    from finetune.params.components import TASKS
    from finetune.params.schema import params_of

    stored = stored_state(folder, task)
    if stored is not None:
        return stored
    config = load_config(folder)
    if preprocessed is not None:
        return task.model.adopt(preprocessed.state_as(task.state), config)
    component = TASKS[task.name].datapreprocess
    values: Json = {p.name: Path() for p in params_of(component) if p.is_port and p.required}
    values |= {p.name: given[p.name] for p in params_of(component) if given.get(p.name) is not None}
    no_rows: dict[str, Rows] = {name: [] for name in SPLITS}
    state = task.data.fit(component(**values), no_rows, imported(folder, task))
    return task.model.adopt(state, config)


def write_predictions(
    path: Path,
    rows: "Rows",
    parts: Iterable[list["Prediction"]],
    task: "Task[State]",
    state: "State",
    findings: "Findings",
) -> StoredRows:
    """Write one line for each row, as predictions come, into the findings too. Return what the metrics need of each."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def needed() -> Iterator["Prediction"]:
        with path.open("w", encoding="utf-8") as file:
            for row, prediction in zip(rows, chain.from_iterable(parts), strict=True):
                file.write(json.dumps({"id": row["id"], "row": row["row"], **prediction}) + "\n")
                findings.add(task.report.examine(prediction, row, state))
                yield task.scoring.needed(prediction)

    return StoredRows.of(needed())


def write_metrics(
    path: Path,
    rows: StoredRows,
    kept: StoredRows,
    task: "Task[State]",
    state: "State",
    facts: Json,
    asked: "Asked",
) -> tuple[dict[str, float], "Breakdown", dict[str, float]]:
    """Write metrics.json if any row has gold. Return the metrics, where they come from, and those that are asked for
    by their published names; none without."""
    from finetune.tasks.task import Breakdown

    scored = array("q", (i for i, row in enumerate(rows) if task.data.has_gold(row)))
    if not scored:
        say(f"no row has {task.data.gold}: predictions only")
        return {}, Breakdown(), {}
    golden = kept.chosen(scored), rows.chosen(scored)
    metrics = task.scoring.metrics(*golden, state) | task.scoring.costly(*golden, state)
    breakdown = task.scoring.breakdown(*golden, state)
    found = task.scoring.published.metrics(*golden, state, asked.options)
    found = {name: found[name] for name in asked.names}
    counts = {"rows": len(rows), f"rows_without_{task.data.gold}": len(rows) - len(scored)}
    parts = {key: value for key, value in asdict(breakdown).items() if value}
    record = {**found, **metrics, **task.scoring.described(state), **counts, **parts, **facts}
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    say("  ".join(f"{name} {shown(value)}" for name, value in metrics.items()))
    if asked.options or len(asked.names) < len(task.scoring.published.names):
        say("as evaluation_config asks: " + "  ".join(f"{name} {shown(value)}" for name, value in found.items()))
    return metrics, breakdown, found


def shown(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_main(main)
