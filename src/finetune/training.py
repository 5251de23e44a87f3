"""The one Trainer: exact loss normalisation, length-grouped batches, streamed evaluation."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainerState

from finetune.allocator import out_of_memory, return_freed_memory
from finetune.checkpoints import STATE, unmark
from finetune.errors import Fault, ModelError
from finetune.prediction import collate, forward, predict
from finetune.sampling import LengthGroupedSampler, by_length
from finetune.schedule import Schedule
from finetune.tables import Row
from finetune.tasks.task import Batch, Task
from finetune.throughput import Throughput

RETURN_STEPS = 10  # at no cost that could be measured, 110 s for 112 s without


class ReturnMemory(TrainerCallback):  # type: ignore[misc]
    """Give back, now and then, what is free of the heap that is kept for speed (allocator.py).

    Batches of ever other lengths leave gaps in it, so that it would grow to twice what a step needs.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % RETURN_STEPS == 0:
            return_freed_memory()


class SaveEvery(TrainerCallback):  # type: ignore[misc]
    """A checkpoint after so many steps, besides those of the best evaluations.

    Where an evaluation follows, the checkpoint waits for it: the run goes on behind what a whole checkpoint says.
    """

    def __init__(self, save_steps: int, evaluation_steps: int) -> None:
        self.save_steps = save_steps
        self.evaluation_steps = evaluation_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        evaluated = state.global_step % self.evaluation_steps == 0 or state.global_step >= state.max_steps
        control.should_save |= state.global_step % self.save_steps == 0 and not evaluated


class FinetuneTrainer(Trainer):  # type: ignore[misc]
    """Hugging Face's loop with four parts of our own.

    - The loss is the sum over items divided by the items of the whole optimizer step, over all processes and
      accumulated batches, so that it does not depend on how a step is cut up. (transformers 5.23 multiplies the loss
      of heads that ignore num_items_in_batch by processes x accumulation steps.)
    - Training batches are grouped by length; their order depends on the global batch alone.
    - Evaluation reduces each batch on the device and decodes with the task's one decoder; it draws nothing from the
      training generator.
    - With save_steps, an evaluation is followed by a checkpoint only if it is the best so far.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        task: Task,
        state: Any,
        train: Dataset,
        validation: Dataset,
        validation_rows: list[Row],
        tokenizer: Any,
        steps: Schedule,
        keep_batches: int,
        save_steps: int,
        throughput_warmup_steps: int,
        callbacks: list[Any],
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=partial(collate, padding=task.padding(tokenizer)),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # Progress in tracking.py speaks instead
        self.add_callback(ReturnMemory())
        self.task = task
        self.task_state = state
        self.validation_rows = validation_rows
        self.global_batch = steps.global_batch
        self.keep_batches = keep_batches
        self.loss_is_scaled_for_ga = True
        self.save_steps = save_steps
        if save_steps > 0:
            self.add_callback(SaveEvery(save_steps, steps.evaluation_steps))
        self.throughput = Throughput(throughput_warmup_steps, args.device)
        self.add_callback(self.throughput)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The share of this batch in the mean over the items of the step."""
        outputs = forward(model, inputs, self.task)
        self.throughput.count(inputs)
        # DDP averages gradients over processes: multiplied here, the average is the sum.
        loss = self.task.loss(outputs, inputs).sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        items = sum((self.task.items(batch).sum() for batch in batch_samples), torch.tensor(0)).to(device)
        total: torch.Tensor = self.accelerator.gather(items).sum()
        return total

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        return LengthGroupedSampler(lengths(self.train_dataset), self.global_batch, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> list[int]:
        return by_length(lengths(eval_dataset))

    def _load_callback_state(self) -> None:
        # Called when the state has just been read from a checkpoint: cadence, patience and folder are this run's.
        self.state.compute_steps(self.args, self.state.max_steps)
        if self.state.best_global_step:
            best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and "EarlyStoppingCallback" in self.state.stateful_callbacks:
                self.state.stateful_callbacks["EarlyStoppingCallback"]["args"] = callback.state()["args"]
        super()._load_callback_state()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            unmark(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best: bool = super()._determine_best_metric(metrics, trial)
        if self.save_steps > 0:
            last = self.state.global_step >= self.state.max_steps
            self.control.should_save = best or last or self.state.global_step % self.save_steps == 0
        return best

    def restore_best(self, checkpoint: Path) -> None:
        """The best model of the run that `checkpoint` ended."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_callback_state()
        if self.state.best_model_checkpoint:
            self._load_best_model()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The task's metrics and the mean loss over all items."""
        started = time.perf_counter()
        try:
            with torch.random.fork_rng(devices=[]):  # a loader seeds its workers from the global generator
                reduced, loss = predict(
                    self.model,
                    self.get_eval_dataloader(),
                    self.task,
                    self.task_state,
                    self.keep_batches,
                    gather=self._gather,
                )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            smaller = max(1, self.args.per_device_eval_batch_size // 2)
            raise ModelError(
                Fault("memory runs out in evaluation", fix=f"--per_device_eval_batch_size {smaller}")
            ) from None
        predictions = self.task.decode(reduced, self.validation_rows, self.task_state)
        scores: dict[str, Any] = {"loss": loss, **self.task.metrics(predictions, self.validation_rows, self.task_state)}
        seconds = time.perf_counter() - started
        self.throughput.evaluation_seconds += seconds
        scores |= {"runtime": seconds, "samples_per_second": len(self.validation_rows) / seconds}
        metrics: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control = control
        return metrics

    def _gather(self, reduced: Any) -> Any:
        """Of all processes, whose batches may be of different lengths."""
        padded = self.accelerator.pad_across_processes(reduced, dim=1, pad_index=-1)
        return self.accelerator.gather_for_metrics(padded)

    def best_metrics(self) -> dict[str, float]:
        """The metrics of the evaluation that gave the best model, without their prefix."""
        step = self.state.best_global_step
        best = [entry for entry in self.state.log_history if "eval_loss" in entry and entry["step"] == step][-1]
        return {name.removeprefix("eval_"): value for name, value in best.items()}


def lengths(windows: Dataset) -> list[int]:
    """Tokens in each window, read from the Arrow offsets without building lists."""
    import pyarrow.compute

    column = windows.with_format("arrow")[:]["input_ids"]
    return pyarrow.compute.list_value_length(column).to_pylist()  # type: ignore[no-any-return]
