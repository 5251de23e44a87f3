"""Count the steps of a run on its processes, and find which of its cadences never come to pass."""

import math
from dataclasses import dataclass, replace

from finetune.core.errors import Fault, ParameterError
from finetune.params.finetune import FinetuneParams


@dataclass(frozen=True)
class Schedule:
    """The steps of a run."""

    steps_per_epoch: int
    total_steps: int
    evaluation_steps: int  # between two evaluations
    global_batch: int  # in one optimizer step, over all processes: windows, or tokens at most
    by_tokens: bool

    @property
    def step(self) -> str:
        """What a step is made of, as text."""
        return f"at most {self.global_batch:,} tokens" if self.by_tokens else f"{self.global_batch:,} windows"


def schedule(params: FinetuneParams, windows: int, processes: int, batches: int | None = None) -> Schedule:
    """Return the schedule. Raises: ParameterError if no evaluation, or no step whose speed counts, is in the run.

    `batches` are those of each process in an epoch, where max_tokens_per_batch and the lengths of windows say them.
    """
    if batches is None:
        batches = math.ceil(windows / (params.per_device_train_batch_size * processes))
    per_epoch = math.ceil(batches / params.gradient_accumulation_steps)
    total = params.max_steps if params.max_steps > 0 else per_epoch * params.num_train_epochs
    faults = []
    every = per_epoch
    if params.evaluation_strategy == "steps":
        interval = params.evaluation_steps_interval
        every = max(1, round(interval * per_epoch)) if interval else params.eval_steps
    if params.evaluation_strategy == "steps" and every > total:
        why = f"the run has {total} steps, and an evaluation comes every {every}; without one there is no best model"
        fix = f"--eval_steps {max(1, total // 2)}"
        faults.append(Fault("the run would end before its first evaluation", why=why, fix=fix))
    if params.throughput_warmup_steps >= total:
        what = f"--throughput_warmup_steps {params.throughput_warmup_steps} leaves out all {total} steps of the run"
        faults.append(Fault(what, fix=f"--throughput_warmup_steps {total // 10}"))
    if faults:
        raise ParameterError(*faults)
    size = params.max_tokens_per_batch or params.per_device_train_batch_size
    global_batch = size * params.gradient_accumulation_steps * processes
    return Schedule(per_epoch, total, every, global_batch, params.max_tokens_per_batch > 0)


def with_smaller_batch(params: FinetuneParams) -> FinetuneParams:
    """Return the parameters with half the batch, or with the next below that divides the windows of a step."""
    half = params.per_device_train_batch_size // 2
    if not params.keep_global_batch_size:
        return replace(params, per_device_train_batch_size=half)
    in_a_step = params.per_device_train_batch_size * params.gradient_accumulation_steps
    batch = max(size for size in range(1, half + 1) if in_a_step % size == 0)
    return replace(params, per_device_train_batch_size=batch, gradient_accumulation_steps=in_a_step // batch)


def without_effect_here(params: FinetuneParams, steps: Schedule) -> list[str]:
    """Return one line for each cadence that never comes to pass in a run of so many steps."""
    total, lines = steps.total_steps, []
    if params.logging_strategy == "steps" and params.logging_steps > total:
        lines.append(f"logging_steps {params.logging_steps} is more than the run's {total}: no training loss is shown")
    if params.lr_scheduler_type != "constant" and params.warmup_steps >= total:
        lines.append(f"warmup_steps {params.warmup_steps} of {total}: the learning rate is never reached")
    evaluations = max(1, total // steps.evaluation_steps)
    if params.apply_early_stopping and params.early_stopping_patience >= evaluations:
        lines.append(
            f"early_stopping_patience {params.early_stopping_patience} can't run out in {evaluations} evaluations"
        )
    return lines
