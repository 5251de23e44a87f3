"""How many steps a run has on how many processes, and what this machine refuses."""

import math
import os
from dataclasses import dataclass

from finetune.errors import Fault, ParameterError, UnsupportedError
from finetune.params import FinetuneParams


def processes() -> int:
    """Processes of this run, one for each device."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Schedule:
    """Steps of a run."""

    steps_per_epoch: int
    total_steps: int
    evaluation_steps: int  # between two evaluations
    global_batch: int  # windows in one optimizer step, over all processes


def schedule(params: FinetuneParams, windows: int, processes: int) -> Schedule:
    """Raises: ParameterError if no evaluation falls into the run."""
    batches = math.ceil(windows / (params.per_device_train_batch_size * processes))
    per_epoch = math.ceil(batches / params.gradient_accumulation_steps)
    total = params.max_steps if params.max_steps > 0 else per_epoch * params.num_train_epochs
    every = per_epoch
    if params.evaluation_strategy == "steps":
        interval = params.evaluation_steps_interval
        every = max(1, round(interval * per_epoch)) if interval else params.eval_steps
        if every > total:
            why = (
                f"the run has {total} steps, and an evaluation comes every {every}; without one there is no best model"
            )
            raise ParameterError(
                Fault(
                    "the run would end before its first evaluation", why=why, fix=f"--eval_steps {max(1, total // 2)}"
                )
            )
    global_batch = params.per_device_train_batch_size * params.gradient_accumulation_steps * processes
    return Schedule(per_epoch, total, every, global_batch)


def refuse_unsupported_here(params: FinetuneParams, processes: int) -> None:
    """Raises: UnsupportedError for what this machine or this launch can't do."""
    import torch

    faults = []
    if params.precision == "16" and not torch.cuda.is_available():
        # transformers would take it and compute in 32 bits.
        why = "fp16 needs a GPU, and none is visible here"
        faults.append(Fault("--precision 16", why=why, fix="--precision bf16"))
    if params.auto_find_batch_size and processes > 1:
        why = f"with {processes} processes, one that runs out of memory leaves the others waiting"
        faults.append(Fault("--auto_find_batch_size true", why=why, fix="--auto_find_batch_size false"))
    if faults:
        raise UnsupportedError(*faults)
