"""The one Trainer: exact loss normalisation, length-grouped batches, streamed evaluation."""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import nn, serialization
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import seed_worker

from finetune.core.console import progress
from finetune.core.errors import Fault, ModelError
from finetune.core.launch import is_main_process, rank
from finetune.core.types import Json
from finetune.data.batches import Batch, as_windows, collate, collate_with_indices
from finetune.data.sampler import Batches, Order, by_length, window_lengths
from finetune.data.table import Row
from finetune.distributed import process_group
from finetune.distributed.hangs import pulse
from finetune.distributed.preemption import prepare_worker
from finetune.models.adapt import fake_quantisation, pruning
from finetune.models.adapt.adaptations import gradients_set_aside, not_trained
from finetune.models.kernels import padding_free
from finetune.models.kernels.cuda_graphs import CudaGraphs
from finetune.models.memory import out_of_memory
from finetune.models.prediction import Watch, predict
from finetune.models.teacher import Teacher
from finetune.tasks.answering import forward
from finetune.tasks.task import Objective, Reduced, State, Task
from finetune.training import checkpoints
from finetune.training.callbacks import Heartbeat, OrderOfEpoch, Prune, ReturnMemory, SaveEvery, SeedGraph, StopTogether
from finetune.training.checkpoints import STATE
from finetune.training.losses.watch import STORED, WatchLoss
from finetune.training.resume import Marker
from finetune.training.schedule import Schedule
from finetune.training.throughput import OwnWork, Throughput

if TYPE_CHECKING:
    from onnxruntime.training.ortmodule import ORTModule
    from transformers.utils.generic import ModelOutput

SAMPLE = 8  # windows
NOTHING = torch.finfo(torch.float32).tiny  # items of a step of windows without a label: their loss is 0


class FinetuneTrainer(Trainer):
    """Hugging Face's loop with four parts of our own.

    - The loss is the sum over items divided by the items of the whole optimizer step (or their weights), over all
      processes and accumulated batches, so that it does not depend on how a step is divided. (transformers 5.23
      multiplies the loss of heads that ignore num_items_in_batch by processes x accumulation steps.) With a teacher,
      its share is the distance from the teacher's probabilities, in training alone.
    - Training batches are grouped by length; their order depends on the global batch alone.
    - Evaluation reduces each batch on the device and decodes with the task's one decoder; it draws nothing from the
      training generator.
    - With save_steps, an evaluation is followed by a checkpoint only if it is the best so far.
    - With apply_ort the outputs of a training step, and the backward pass, are a graph's of ONNX Runtime, on the same
      weights; all else, evaluation too, is PyTorch.
    - Gates and ranges don't count when the gradient of the weights is clipped. Gates have a learning rate of their own,
      and the best model is one in which all have closed that will.
    """

    model: PreTrainedModel
    train_dataset: Dataset
    eval_dataset: Dataset

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        task: Task[State],
        objective: Objective,
        teacher: Teacher | None,
        prune: Prune | None,
        graph: "ORTModule | None",
        cuda_graphs: CudaGraphs | None,
        state: State,
        train: Dataset,
        validation: Dataset,
        validation_rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerFast,
        order: Order,
        batches: Batches,
        steps: Schedule,
        keep_batches: int,
        save_steps: int,
        save_total_limit: int,
        marker: Marker,
        loss_spike_threshold: float,
        throughput_warmup_steps: int,
        forward_alone: bool,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=partial(collate, padding=task.data.padding(tokenizer)),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # Progress in tracking.py speaks instead
        self.add_callback(ReturnMemory())
        self.own_work = OwnWork(args.device)
        if forward_alone:
            model.register_forward_pre_hook(self.own_work.begin_forward)
        self.add_callback(Heartbeat())
        self.task = task
        self.training_objective = objective
        self.teacher = teacher
        if teacher:
            teacher.model.to(args.device)  # type: ignore[arg-type]
        self.prune = prune
        if prune:
            self.add_callback(prune)
        # What is no weight: it is clipped and decayed with none of them.
        self.apart = [*(prune.scores if prune else ()), *fake_quantisation.edges_of(model)]
        self.graph = graph
        self.cuda_graphs = cuda_graphs
        if graph:
            self.add_callback(SeedGraph())
        self.padding_free = model.config._attn_implementation == padding_free.NAME
        self.first_position = padding_free.first_position(model)
        self.tokenizer = tokenizer
        self.task_state = state
        self.validation_rows = validation_rows
        self.batches = batches
        self.add_callback(OrderOfEpoch(order))
        self.keep_batches = keep_batches
        self.loss_is_scaled_for_ga = True
        self.save_steps = save_steps
        if save_steps > 0:
            self.add_callback(SaveEvery(save_steps, steps.evaluation_steps))
        self.save_total_limit = save_total_limit
        self.marker = marker
        self.throughput = Throughput(throughput_warmup_steps, args.device)
        self.add_callback(self.throughput)
        self.stop = StopTogether(steps.evaluation_steps)
        self.add_callback(self.stop)
        may_leave_out = not (args.deepspeed or args.fsdp or args.fp16)
        self.watch = WatchLoss(steps.evaluation_steps, tokenizer, loss_spike_threshold, may_leave_out)
        self.add_callback(self.watch)  # the last one: it has to know whether a checkpoint follows

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> "torch.Tensor | tuple[torch.Tensor, ModelOutput]":
        """Return the share of this batch in the mean loss over the items of the step, a scalar.

        `inputs` are tensors (B, L) or (B,); `num_items_in_batch` are the items of the step over all processes.
        """
        if self.padding_free:
            by = self.cuda_graphs or model
            outputs = padding_free.forward(by, inputs, self.task.model.inputs, self.first_position)
        else:
            outputs = forward(self.graph or model, inputs, self.task.model.inputs)
        self.throughput.count(inputs)
        losses = self.training_objective.loss(outputs, inputs)
        if self.teacher:
            with self.accelerator.autocast():
                losses = self.teacher.blended(losses, outputs, inputs, self.training_objective)
        assert num_items_in_batch is not None  # _get_num_items_in_batch counts them
        share = losses.sum() / num_items_in_batch
        self.watch.note(self.state.global_step + 1, share, inputs)
        # DDP averages gradients over processes: multiplied here, the average is the sum.
        loss = share * self.accelerator.num_processes
        self.own_work.end_forward()
        pulse.reach()
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the share of this batch in the loss that is logged; 0 and no gradient in a step that is left out."""
        if self.watch.leaves_out(self.state.global_step + 1):
            return torch.zeros((), device=self.args.device)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def get_batch_samples(self, *arguments: Any, **given: Any) -> Any:
        self.own_work.begin_loading()
        return super().get_batch_samples(*arguments, **given)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        """Return the items of a step, () over all processes; each batch has tensors (B, L) or (B,)."""
        self.own_work.end_loading()
        pulse.reach()
        items = sum((self.training_objective.items(batch).sum() for batch in batch_samples), torch.tensor(0.0)).to(
            device
        )
        with pulse.waiting():
            total: torch.Tensor = self.accelerator.gather(items).sum()
        return total.clamp(min=NOTHING)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Return those of a step, as transformers does, which counts all weights anew each time."""
        return 6 * inputs["input_ids"].numel() * self._weights_of_layers

    @cached_property
    def _weights_of_layers(self) -> int:
        return int(self.model.num_parameters(exclude_embeddings=True))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of the weights, with a group each for scores of gates and for ranges that are learnt."""
        with not_trained(self.apart):
            optimizer = super().create_optimizer(model)
        if edges := fake_quantisation.edges_of(self.model):
            optimizer.add_param_group({"params": edges, "weight_decay": 0.0})
        if self.prune and self.prune.method == "gates":
            optimizer.add_param_group({"params": self.prune.scores, "lr": pruning.GATE_RATE, "weight_decay": 0.0})
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor | float | None:
        with gradients_set_aside(self.apart):
            norm: torch.Tensor | float | None = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        return norm

    def _get_grad_norm(
        self, model: nn.Module, grad_norm: torch.Tensor | float | None = None
    ) -> torch.Tensor | float | None:
        norm: torch.Tensor | float | None = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None and not self.args.fp16:  # which makes no step where its scaled gradient is too large
            self.watch.note_norm(self.state.global_step + 1, torch.as_tensor(norm))
        return norm

    def get_train_dataloader(self) -> DataLoader[Json]:
        """Return the loader of this process's batches: like the Trainer's, but of batches of any size."""
        args = self.args
        seeded = partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
        loader: DataLoader[Json] = self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=self.batches,
                collate_fn=partial(
                    collate_with_indices if self.padding_free else collate,
                    padding=self.task.data.padding(self.tokenizer),
                ),
                num_workers=args.dataloader_num_workers,
                pin_memory=args.dataloader_pin_memory,
                worker_init_fn=partial(prepare_worker, seeded),
            )
        )
        return loader

    def _get_dataloader(self, *arguments: Any, **given: Any) -> Any:
        loader: Any = super()._get_dataloader(*arguments, **given)
        of_torch = loader.base_dataloader  # accelerate's has its own round it
        of_torch.worker_init_fn = partial(prepare_worker, of_torch.worker_init_fn)
        return loader

    def _get_eval_sampler(self, eval_dataset: Dataset) -> list[int]:  # type: ignore[override]  # any iterable will do
        return by_length(window_lengths(eval_dataset))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        scaler = self.accelerator.scaler
        if checkpoint and scaler is not None:
            # FSDP fills the optimizer by a step of zeros; without a scale, which is loaded afterwards, that step fails.
            scaler.scale(torch.zeros((), device=self.args.device))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_callback_state(self) -> None:
        # Called when the state has just been read from a checkpoint: cadence, patience and folder are this run's.
        self.state.compute_steps(self.args, self.state.max_steps)
        if self.state.best_global_step:
            best = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = process_group.broadcast_from_main(
                lambda: str(best) if best.is_dir() else None
            )
        stored: Any = self.state.stateful_callbacks  # a dict, whatever its annotation says
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and "EarlyStoppingCallback" in stored:
                stored["EarlyStoppingCallback"]["args"] = callback.state()["args"]
        if STORED in stored:
            self.watch.record.resume(stored.pop(STORED))
        super()._load_callback_state()

    @pulse.within("save")
    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            if is_main_process():
                checkpoints.begin(checkpoint)
            process_group.barrier()
            super()._save_checkpoint(model, trial)
            if is_main_process():
                self.model.config.save_pretrained(checkpoint)  # an adapter is saved without it
                checkpoints.leave_out_this_machine(checkpoint)
            written = process_group.gather_to_main(checkpoints.flush(checkpoint, rank()))
            if is_main_process():
                all_files = {name: file for files in written for name, file in files.items()}
                checkpoints.finish(checkpoint, asdict(self.marker), all_files)
        except Exception:
            if is_main_process():
                with contextlib.suppress(OSError):
                    checkpoints.remove(checkpoint)  # its files may be what fills the disk
            raise
        # The main process knows: a mounted folder may show it late to others, who must not fall behind.
        self.state.best_model_checkpoint = process_group.broadcast_from_main(lambda: self.state.best_model_checkpoint)
        # Older ones go when the new one is complete, not before.
        if is_main_process() and self.save_total_limit > 0:
            best = self.state.best_model_checkpoint
            checkpoints.keep(checkpoint.parent, self.save_total_limit, {checkpoint, *([Path(best)] if best else [])})
        process_group.barrier()  # nobody may leave, and thereby end the main process, before that is done

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write them without CRC32, which took a third of the time: flush() has a checksum of every file."""
        before = serialization.get_crc32_options()
        serialization.set_crc32_options(False)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            serialization.set_crc32_options(before)

    def _save_rng_state(self, output_dir: str) -> None:
        """Write the files of all processes in the main one: no other machine need see its folder in time."""
        with tempfile.TemporaryDirectory() as own:
            super()._save_rng_state(own)
            written = {path.name: path.read_bytes() for path in Path(own).iterdir()}
        for files in process_group.gather_to_main(written):
            for name, content in files.items():
                (Path(output_dir) / name).write_bytes(content)

    def _determine_best_metric(self, metrics: dict[str, float], trial: object) -> bool:
        candidate = self.prune is None or self.prune.finished(self.state)
        best: bool = candidate and super()._determine_best_metric(metrics, trial)
        if self.save_steps > 0:
            last = self.state.global_step >= self.state.max_steps
            due = self.state.global_step % self.save_steps == 0
            self.control.should_save = best or last or due or self.stop.stopping
        return best

    def restore_best(self, checkpoint: Path) -> None:
        """Load the best model of the run that `checkpoint` ended."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_callback_state()
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # their checkpoints are read by what wrote them
            self._prepare_for_training(self.state.max_steps, self.get_train_dataloader(), None)  # type: ignore[no-untyped-call]
        if self.state.best_model_checkpoint:
            self._load_best_model()

    @pulse.within("evaluation")
    def evaluate(
        self, eval_dataset: object = None, ignore_keys: object = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the task's metrics and the mean loss over all items."""
        started = time.perf_counter()
        try:
            # A loader seeds its workers from the global generator.
            with torch.random.fork_rng(devices=[]), progress(len(self.validation_rows), "validate", True) as bar:
                reduced, loss = predict(
                    self.model,
                    self.get_eval_dataloader(),
                    self.task,
                    self.task_state,
                    self.keep_batches,
                    gather=self._gather,
                    watch=Watch(bar, self.task),
                )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            smaller = max(1, self.args.per_device_eval_batch_size // 2)
            raise ModelError(
                Fault("memory runs out in evaluation", fix=f"--per_device_eval_batch_size {smaller}")
            ) from None
        predictions = self.task.decoding.decode(reduced, self.validation_rows, self.task_state, self.tokenizer)
        measured = self.task.scoring.metrics(predictions, self.validation_rows, self.task_state)
        scores: Json = {"loss": loss, **measured}
        seconds = time.perf_counter() - started
        self.throughput.evaluation_seconds += seconds
        scores |= {"runtime": seconds, "samples_per_second": len(self.validation_rows) / seconds}
        metrics: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def sample_loss(self, model: PreTrainedModel) -> float:
        """Return the mean loss over the items of the first windows of validation, on the device of the model."""
        batch = self.data_collator(as_windows(self.eval_dataset[:SAMPLE]))
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        model.eval()
        objective, outputs = self.task.objective, forward(model, batch, self.task.model.inputs)
        return float(objective.loss(outputs, batch).sum() / objective.items(batch).sum().clamp(min=1))

    def release(self) -> None:
        """Give back what only steps need: gradients, and the states of optimizer and DDP. No step can follow."""
        self.optimizer = self.lr_scheduler = self.cuda_graphs = None
        self.model_wrapped = self.model
        self.model.zero_grad(set_to_none=True)
        handler: Any = self.callback_handler
        handler.optimizer = handler.lr_scheduler = handler.train_dataloader = None
        handler.model = self.model
        self.accelerator.free_memory()

    def _gather(self, reduced: Reduced) -> Reduced:
        """Return the reduced outputs of all processes, whose batches may be of different lengths."""
        pulse.reach()
        with pulse.waiting():
            padded = self.accelerator.pad_across_processes(reduced, dim=1, pad_index=-1)
            gathered: Reduced = self.accelerator.gather_for_metrics(padded)
        return gathered

    def best_metrics(self) -> dict[str, float]:
        """Return the metrics of the evaluation that gave the best model, without their prefix."""
        step = self.state.best_global_step
        best = [entry for entry in self.state.log_history if "eval_loss" in entry and entry["step"] == step][-1]
        return {name.removeprefix("eval_"): value for name, value in best.items()}
