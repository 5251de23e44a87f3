"""Show the user how training goes, and log it to MLflow: in the main process, which alone imports it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transformers import TrainerCallback, TrainerState

from finetune.core.console import progress, say
from finetune.core.errors import first_line
from finetune.core.launch import is_main_process
from finetune.distributed import preemption
from finetune.params.finetune import FinetuneParams

Logs = dict[str, float] | None  # what the Trainer hands over is never None


def tracking_uri(folder: Path) -> str:
    """Return Azure ML's or the pipeline's own where set, else SQLite beside the model (MLflow refuses plain folders).

    It has no locks, which mounted folders may lack: the main process is the only one that writes it. With the driver
    named, MLflow doesn't take "file:" for a folder of the working directory, which it would make.
    """
    own = f"sqlite+pysqlite:///file:{quote(str(folder.resolve()))}/mlflow.db?nolock=1&uri=true"
    return os.environ.get("MLFLOW_TRACKING_URI") or own


class Progress(TrainerCallback):
    """A bar over steps, and a line for every loss and evaluation."""

    def __init__(self, main_metric: str) -> None:
        self.main_metric = main_metric
        self.bar: Any = None

    def on_train_begin(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.bar = progress(state.max_steps, "train")
        self.bar.update(state.global_step)

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.bar.update(1)

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, float] | None = None, **_: object
    ) -> None:
        if logs and "loss" in logs:
            norm, rate = logs.get("grad_norm", 0.0), logs["learning_rate"]
            self._say(state, f"loss {logs['loss']:.4f}  gradient norm {norm:.2f}  learning rate {rate:.2e}")

    def on_evaluate(
        self, args: object, state: TrainerState, control: object, metrics: Logs = None, **_: object
    ) -> None:
        assert metrics is not None
        score, rate = metrics[f"eval_{self.main_metric}"], metrics["eval_samples_per_second"]
        text = f"validation loss {metrics['eval_loss']:.4f}  {self.main_metric} {score:.4g}  ({rate:.0f} rows/s)"
        self._say(state, text)

    def on_train_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.bar.close()

    def _say(self, state: TrainerState, text: str) -> None:
        if self.bar is not None:  # there is none where nothing was left to train
            self.bar.clear()
        say(f"step {state.global_step}/{state.max_steps}  epoch {state.epoch:.2f}  {text}")


@contextmanager
def tracked(params: FinetuneParams) -> Iterator[None]:
    """Begin an MLflow run, or the one that Azure ML names in MLFLOW_RUN_ID, which fails if training does. Main only."""
    if not is_main_process():
        yield
        return
    import mlflow

    params.pytorch_model_folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(tracking_uri(params.pytorch_model_folder))
    with preemption.noted("before training"):  # half a database would stop every later run into the folder
        run = mlflow.start_run(log_system_metrics=False)
    with run:
        mlflow.log_params({name: str(value) for name, value in asdict(params).items()})
        yield


class MlflowMetrics(TrainerCallback):
    """The callback that logs to MLflow all that the Trainer logs, in the process that began the run."""

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, float] | None = None, **_: object
    ) -> None:
        numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        log_numbers(numbers, step=state.global_step)


def log_evaluation(numbers: dict[str, float]) -> None:
    """Log the metrics of the evaluation component to the run that Azure ML names, or to a new one of the pipeline's.

    Nothing is logged where neither is there: the metrics are in metrics.json.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ:
        return
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    try:
        with mlflow.start_run(run_name="evaluation", log_system_metrics=False):
            log_numbers(numbers)
    except mlflow.MlflowException as error:  # what was scored is written
        say(f"warning: MLflow did not take the metrics: {first_line(error)}")


def log_numbers(numbers: dict[str, float], step: int | None = None) -> None:
    """Log numbers of a step, or of the whole run, to the MLflow run that has begun."""
    if not is_main_process():
        return
    import mlflow

    if mlflow.active_run() is not None:
        mlflow.log_metrics(numbers, step=step)
