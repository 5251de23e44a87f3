"""Train in one attempt, or with auto_find_batch_size in as many as it takes to find a batch that fits into memory."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow
import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, load_from_disk
from transformers import PreTrainedConfig, PreTrainedModel, set_seed
from transformers.trainer_pt_utils import get_model_param_count

from finetune.core.console import say, some
from finetune.core.errors import Fault, HandoffError, ModelError, first_line
from finetune.core.launch import is_main_process, world_size
from finetune.core.types import Json
from finetune.data.batches import collate, spread
from finetune.data.folders import Preprocessed, SelectedModel, read_rows
from finetune.data.sampler import batches_of, longer_lengths, training_order, window_lengths
from finetune.distributed import onnx_runtime, process_group, zero_engine
from finetune.distributed.hangs import pulse
from finetune.distributed.preemption import noted
from finetune.distributed.settlement import Settled
from finetune.distributed.zero_schema import stage
from finetune.models.adapt import adaptations, fake_quantisation, four_bit
from finetune.models.adapt.padding_free import compiles_whole_model, cuda_graphs_of
from finetune.models.head import describe_new, head_parameters
from finetune.models.loading import load_model
from finetune.models.memory import leave_out_the_libraries, out_of_memory, return_freed_memory
from finetune.models.ort import engine as ort
from finetune.models.ort import preflight
from finetune.models.stored.configs import store_state
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.models.teacher import load_teacher
from finetune.params.export import CALIBRATION
from finetune.params.finetune import EncoderParams, FinetuneParams
from finetune.params.provenance import Derived, write_resolved
from finetune.tasks.task import State, Task
from finetune.training import arguments, checkpoints, gathering, resume
from finetune.training.batch_search import batch_that_fits
from finetune.training.callbacks import Calibrate, Prune
from finetune.training.losses.verdict import Record
from finetune.training.losses.watch import Spiked
from finetune.training.schedule import Schedule, schedule, with_smaller_batch, without_effect_here
from finetune.training.tracking import log_numbers
from finetune.training.trainer import FinetuneTrainer

if TYPE_CHECKING:
    from onnxruntime.training.ortmodule import ORTModule


class Attempt(NamedTuple):
    """One try to train: with auto_find_batch_size there may be several."""

    params: FinetuneParams  # as settled, but the batch may be smaller
    settled: Settled[FinetuneParams]
    steps: Schedule
    trainer: FinetuneTrainer
    fresh: Callable[[], PreTrainedModel]  # the adapted model as it was before training
    restore: Callable[[PreTrainedModel], PreTrainedModel]  # undoes the adaptations of the model
    derived: list[Derived]


def preflighted(
    settled: Settled[FinetuneParams], task: Task[State], preprocessed: Preprocessed, config: PreTrainedConfig
) -> Settled[FinetuneParams]:
    """Return the settled parameters, without apply_ort where ONNX Runtime doesn't compute what PyTorch does."""
    params = settled.params
    if not params.apply_ort:
        return settled
    say("apply_ort: compare ONNX Runtime with PyTorch on a small model of the same kind")
    windows = load_windows(params.preprocess_output, task, preprocessed)["train"]
    padding = task.data.padding(load_tokenizer(Preprocessed.tokenizer_folder(params.preprocess_output), task))
    why = preflight.why_not(params, config, task, preprocessed.state_as(task.state), windows, padding)
    if not why:
        return settled
    given = (*settled.given, onnx_runtime.by_pytorch(why))
    return replace(settled, params=replace(params, apply_ort=False), given=given)


def train(
    settled: Settled[FinetuneParams], task: Task[State], preprocessed: Preprocessed, checkpoint: Path | None
) -> tuple[Attempt, dict[str, float]]:
    """Train; where memory runs out and auto_find_batch_size is true, shrink the batch and start from the first weights.

    Return the attempt that reached the end, and its speed.
    """
    leave_out_the_libraries()
    params = settled.params
    data = load_windows(params.preprocess_output, task, preprocessed)
    tried = resume.with_found_batch(params, checkpoint) if checkpoint else params
    together = world_size() > 1 or params.apply_deepspeed
    if params.auto_find_batch_size and together and not checkpoint:
        tried = probed(params, task, preprocessed, data["train"])
    said: list[Derived] = []
    record = Record()
    while True:
        spike = ""
        attempt = build(tried, settled, task, preprocessed, data)
        attempt.trainer.watch.record = replace(record)  # which it changes
        tell(attempt, said)
        try:
            speed = fit(attempt, checkpoint)
        except Spiked as found:
            record, spike = found.record, str(found)
        except (RuntimeError, MemoryError) as error:
            tried = next_try(tried, checkpoint, error)
        else:
            if params.auto_find_batch_size:
                say(f"auto_find_batch_size: {batch_text(tried)} fits into memory")
            return attempt, speed
        said = attempt.derived
        del attempt
        gc.collect()
        clear_device_cache()
        return_freed_memory()
        if spike:
            checkpoint = newest(params.pytorch_model_folder, spike)
        if not checkpoint and is_main_process():
            checkpoints.discard(params.pytorch_model_folder)


def newest(folder: Path, spike: str) -> Path | None:
    """Return the checkpoint that a run goes on from after a spike, and say so; None to begin with the first weights."""
    found: Path | None = process_group.broadcast_from_main(lambda: checkpoints.newest_complete(folder))
    say(f"loss spike: {spike}; going on from {found.name if found else 'the first weights'}")
    return found


def probed(params: FinetuneParams, task: Task[State], preprocessed: Preprocessed, train: Dataset) -> FinetuneParams:
    """Find the batch before several processes or an engine train: they can't begin again when memory runs out."""
    state = preprocessed.state_as(task.state)
    tokenizer = load_tokenizer(Preprocessed.tokenizer_folder(params.preprocess_output), task)

    def fresh(tried: FinetuneParams) -> PreTrainedModel:
        model = fresh_model(tried, task, state)
        adaptations.recompute(model, tried)  # no Trainer does it
        return model

    return batch_that_fits(params, fresh, train, task, task.data.padding(tokenizer))


def next_try(tried: FinetuneParams, checkpoint: Path | None, error: Exception) -> FinetuneParams:
    """Return a smaller batch. Raises: the error, if none is asked for or left; ModelError in a resumed run."""
    batch = tried.per_device_train_batch_size
    if not tried.auto_find_batch_size or batch == 1 or not out_of_memory(error):
        raise error
    if world_size() > 1 or tried.apply_deepspeed:
        fix = f"--per_device_train_batch_size {batch // 2}"
        raise ModelError(Fault(f"memory runs out with {batch} windows at a time", fix=fix)) from None
    if checkpoint and not tried.keep_global_batch_size:
        why = "a resumed run can't change the windows of a step"
        fault = Fault(f"memory runs out with {batch} windows at a time", why=why, fix="--keep_global_batch_size true")
        raise ModelError(fault) from None
    smaller = with_smaller_batch(tried)
    say(f"out of memory with per_device_train_batch_size {batch}; starting again with {batch_text(smaller)}")
    return smaller


def batch_text(params: FinetuneParams) -> str:
    """Return what auto_find_batch_size changes, as text."""
    accumulated = f", gradient_accumulation_steps {params.gradient_accumulation_steps}"
    return f"{params.per_device_train_batch_size}{accumulated if params.keep_global_batch_size else ''}"


def tell(attempt: Attempt, said: list[Derived]) -> None:
    """Print a line for each value that is not what the command line says, and write all to resolved_config.yaml."""
    for item in attempt.derived:
        if item not in said:
            say(str(item))
    if is_main_process():
        write_resolved(attempt.settled.asked, attempt.derived, attempt.params.pytorch_model_folder)
    args = attempt.trainer.args
    where = f"{world_size()} x {args.device.type}, precision {attempt.params.precision}"
    windows = len(attempt.trainer.train_dataset)
    if attempt.params.max_tokens_per_batch and not said:  # run.py knows the steps of all other runs
        for line in without_effect_here(attempt.params, attempt.steps):
            say(f"note: {line}")
    say(f"{windows} windows, {attempt.steps.total_steps} steps of {attempt.steps.step}, {where}")


def build(
    params: FinetuneParams,
    settled: Settled[FinetuneParams],
    task: Task[State],
    preprocessed: Preprocessed,
    data: Json,
) -> Attempt:
    """Return an attempt: the imported model, adapted, in a Trainer. The batch may be smaller than settled."""
    pulse.reach("start")
    wanted, deepspeed = settled.params, settled.deepspeed
    lengths = longer_lengths(data["train"]) if params.max_tokens_per_batch else window_lengths(data["train"])
    order = training_order(params, lengths, world_size())
    batches = batches_of(order, params.per_device_train_batch_size)
    steps = schedule(params, len(data["train"]), world_size(), math.ceil(len(batches) / world_size()))
    set_seed(params.seed)  # for the new head; the Trainer sets it again, and what full determinism needs
    state = preprocessed.state_as(task.state)
    adapted, lines = adapted_model(params, task, state)
    attention = adapted.model.config._attn_implementation
    for line in lines:
        say(line)
    if deepspeed:
        zero_engine.quiet()
        zero_engine.write_data_alone()
        zero_engine.clear_stale_locks()
    engine = gathering.arguments(params, adapted.model, deepspeed)
    tokenizer = load_tokenizer(Preprocessed.tokenizer_folder(params.preprocess_output), task)
    teacher = load_teacher(params, task, state, tokenizer)
    if teacher:
        say(str(teacher))
    pulse.reach()
    padding = task.data.padding(tokenizer)
    graph, by_pytorch = graph_of(params, adapted.model, data["train"], task, padding)
    cuda_graphs, recorded = cuda_graphs_of(adapted.model, params, max(lengths))
    for line in recorded:
        say(line)
    objective, weights = task.weigh(params, state, data["train"]) if task.weigh else (task.objective, [])
    trainer = FinetuneTrainer(
        model=adapted.model,
        args=arguments.training_arguments(  # ZeRO-3 shards models that are loaded after it
            replace(params, torch_compile=compiles_whole_model(adapted.model, params)), steps, engine
        ),
        task=task,
        objective=objective,
        teacher=teacher,
        prune=gates_to_close(params, adapted.model, data["train"]),
        graph=graph,
        cuda_graphs=cuda_graphs,
        state=state,
        train=data["train"],
        validation=data["validation"],
        validation_rows=read_rows(Preprocessed.rows_file(params.preprocess_output, "validation"), task.data.damage),
        tokenizer=tokenizer,
        order=order,
        batches=batches,
        steps=steps,
        keep_batches=params.eval_accumulation_steps,
        save_steps=params.save_steps,
        save_total_limit=params.save_total_limit,
        marker=resume.Marker.of(params, wanted, steps, len(data["train"]), gathering.sharding(params, deepspeed)),
        loss_spike_threshold=params.loss_spike_threshold,
        throughput_warmup_steps=params.throughput_warmup_steps,
        forward_alone=not (cuda_graphs or params.torch_compile or params.apply_fsdp or stage(deepspeed or {}) == 3),
        callbacks=[
            *arguments.callbacks(params, task.scoring.main_metric(state)),
            *ranges_to_set(params, adapted.model, data["train"], task, padding),
        ],
    )
    derived = [*settled.given, *arguments.derived(params, wanted, steps, attention, "optimizer" in (deepspeed or {}))]
    derived += [*by_pytorch, *weights]
    return Attempt(params, settled, steps, trainer, partial(fresh_model, params, task, state), adapted.restore, derived)


def graph_of(
    params: FinetuneParams, model: PreTrainedModel, train: Dataset, task: Task[State], padding: dict[str, int]
) -> tuple["ORTModule | None", list[Derived]]:
    """Return the model as a graph of ONNX Runtime; None where that isn't asked for, or fails for the whole model, and
    then what the user is told."""
    if not params.apply_ort:
        return None, []
    try:
        return ort.graph_of(model, next(preflight.batches(train, padding)), task.model.inputs), []
    except Exception as error:  # of the exporter, of ONNX Runtime or of protobuf, which holds 2 GB
        return None, [onnx_runtime.by_pytorch(f"no graph of the whole model can be made: {first_line(error)}")]


def gates_to_close(params: FinetuneParams, model: PreTrainedModel, train: Dataset) -> Prune | None:
    """Return the callback that prunes the model; None where that isn't asked for."""
    if not isinstance(params, EncoderParams) or not params.apply_pruning:
        return None
    return Prune(model, params.pruning_ratio, params.pruning_method, float(np.mean(window_lengths(train))))


def ranges_to_set(
    params: FinetuneParams, model: PreTrainedModel, train: Dataset, task: Task[State], padding: dict[str, int]
) -> list[Calibrate]:
    """Return the callback that sets the ranges of a model that is trained with rounding, where that is asked for."""
    if not fake_quantisation.wanted(params):
        return []
    windows = [train[i] for i in spread(range(len(train)), CALIBRATION)]
    inputs = [{name: values for name, values in window.items() if name in task.model.inputs} for window in windows]
    pruned = isinstance(params, EncoderParams) and params.apply_pruning
    return [Calibrate(model, [collate([window], padding) for window in inputs], pruned)]


def adapted_model(params: FinetuneParams, task: Task[State], state: State) -> tuple[adaptations.Adapted, list[str]]:
    """Return the imported model with the task's head, adapted, and the lines to print. Raises: ModelError."""
    source = SelectedModel.model_folder(params.model_selector_output)
    attention = ort.ATTENTION if params.apply_ort else params.attn_implementation
    model, new = load_model(source, task, state, params.ignore_mismatched_sizes, attention)
    lines = describe_new(model, new, model.config.architectures)
    store_state(model, state, task)
    if params.apply_lora:
        refuse_frozen_random(model, new)
    adapted = adaptations.adapt(model, params)
    return adapted, [*lines, *adapted.said]


def fresh_model(params: FinetuneParams, task: Task[State], state: State) -> PreTrainedModel:
    """Return the adapted model as it is before training."""
    return adapted_model(params, task, state)[0].model


def refuse_frozen_random(model: PreTrainedModel, new: list[str]) -> None:
    """Raise ModelError if LoRA would freeze weights that no pretraining has seen."""
    lost = sorted(set(new) - set(head_parameters(model)))
    if lost:
        what = "LoRA would keep weights frozen that are random, since the imported model lacks them"
        raise ModelError(Fault(what, why=some(lost), fix="--apply_lora false, or import a model that has them"))


def final_metrics(attempt: Attempt) -> dict[str, float]:
    """Return the metrics of the model that will be saved; one trained in fewer bits is evaluated again without them."""
    trainer = attempt.trainer
    if not attempt.params.apply_deepspeed and not attempt.params.apply_fsdp:  # whose shards are not gathered yet
        trainer.release()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if four_bit.wanted(attempt.params):
        four_bit.restore(model)
        say("without 4 bits, as it will be saved:")
    elif fake_quantisation.wanted(attempt.params):
        fake_quantisation.restore(model)
        say("without rounding, as PyTorch will compute it:")
    else:
        return trainer.best_metrics()
    return {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}


def fit(attempt: Attempt, checkpoint: Path | None) -> dict[str, float]:
    """Train to the end and load the best model. Return the speed; nothing if the run had ended before.

    Raises: ParameterError or ModelError.
    """
    params, steps, trainer = attempt.params, attempt.steps, attempt.trainer
    if checkpoint:
        resume.refuse_other_run(checkpoint, trainer.marker, trainer.task.name)
    with resume.reading_data_alone(checkpoint, params.apply_deepspeed):
        if checkpoint and (why := resume.why_over(checkpoint, params, steps)):
            say(f"nothing is left to train after {checkpoint.name}: {why}")
            trainer.restore_best(checkpoint)
            speed = {}
        else:
            with noted():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            speed = speed_of(trainer)
    if not all(torch.isfinite(p).all() for p in trainer.model.parameters()):
        raise gathering.diverged(trainer)
    state = trainer.state
    if state.best_model_checkpoint is None:
        fix = "look at the validation loss above; a lower --learning_rate may help"
        raise ModelError(Fault("there is no best checkpoint: no evaluation gave a finite metric", fix=fix))
    say(f"best at step {state.best_global_step}: {params.metric_for_best_model} {state.best_metric:.4f}")
    return speed


def speed_of(trainer: FinetuneTrainer) -> dict[str, float]:
    """Return the seconds and rates of the training that has just ended; print and log them."""
    speed = trainer.throughput.rates(trainer.accelerator.gather)
    args = trainer.args
    batch = {name: vars(args)[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    trained = get_model_param_count(trainer.model, trainable_only=True)
    log_numbers({**speed, **batch, "trained_parameters": trained})
    rates = f"{speed['train_samples_per_second']:.1f} samples/s, {speed['train_tokens_per_second']:.0f} tokens/s"
    warmup = trainer.throughput.warmup_steps
    without = f", without the first {warmup} steps" if trainer.throughput.without_warmup else ""
    say(f"trained {speed['train_seconds']:.0f} s: {rates}{without}")
    return speed


def load_windows(output: Path, task: Task[State], preprocessed: Preprocessed) -> Json:
    """Return the encoded training and validation rows, memory-mapped. Raises: HandoffError if they are damaged."""
    found = {}
    for name in ("train", "validation"):
        folder = Preprocessed.windows_folder(output, name)
        try:
            loaded = load_from_disk(folder)
            why = damage(loaded, name, task, preprocessed)
        except Exception as error:  # datasets and pyarrow raise errors of a dozen unrelated classes here
            why = f"{type(error).__name__}: {first_line(error)}"
        if why:
            raise HandoffError(Fault(f"{folder} is damaged", why=why, fix="run `python -m finetune.preprocess` again"))
        found[name] = loaded.with_format("numpy")
    return found


def damage(windows: Dataset, split: str, task: Task[State], preprocessed: Preprocessed) -> str:
    """Return what keeps windows from being those that preprocess wrote; "" where nothing does."""
    report = preprocessed.splits[split]
    if not isinstance(windows, Dataset) or len(windows) != report.windows:
        return f"{len(windows)} windows instead of {report.windows}"
    needed = {"input_ids", "attention_mask", *task.objective.labels}
    needed |= task.data.decode_columns if split == "validation" else set()
    if missing := needed - set(windows.column_names):
        return f"there is no column {min(missing)}"
    whole = (pyarrow.int32(), pyarrow.list_(pyarrow.int32()))
    kinds = zip(windows.column_names, windows.data.schema.types, strict=True)
    if other := [name for name, kind in kinds if kind not in whole]:
        return f"column {min(other)} does not hold whole numbers"
    if split == "validation":
        rows = windows.with_format("arrow")[:]["row"].to_numpy()
        if rows.min() < 0 or rows.max() >= report.rows_kept:
            return "a window is of a row that isn't there"
    return ""
