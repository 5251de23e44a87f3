"""How many steps a run has on how many processes, and what this machine refuses."""

import math
from dataclasses import dataclass, replace

from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.distributed import fsdp
from finetune.params.finetune import FinetuneParams


@dataclass(frozen=True)
class Schedule:
    """Steps of a run."""

    steps_per_epoch: int
    total_steps: int
    evaluation_steps: int  # between two evaluations
    global_batch: int  # windows in one optimizer step, over all processes


def schedule(params: FinetuneParams, windows: int, processes: int) -> Schedule:
    """Raises: ParameterError if no evaluation, or no step whose speed counts, falls into the run."""
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
    global_batch = params.per_device_train_batch_size * params.gradient_accumulation_steps * processes
    return Schedule(per_epoch, total, every, global_batch)


def with_smaller_batch(params: FinetuneParams) -> FinetuneParams:
    """Half as many windows at a time, or what is next below that can hold the windows of a step."""
    half = params.per_device_train_batch_size // 2
    if not params.keep_global_batch_size:
        return replace(params, per_device_train_batch_size=half)
    in_a_step = params.per_device_train_batch_size * params.gradient_accumulation_steps
    batch = max(size for size in range(1, half + 1) if in_a_step % size == 0)
    return replace(params, per_device_train_batch_size=batch, gradient_accumulation_steps=in_a_step // batch)


def without_effect_here(params: FinetuneParams, steps: Schedule) -> list[str]:
    """One line for each cadence that never comes to pass in a run of so many steps."""
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


def refuse_unsupported_here(params: FinetuneParams, processes: int) -> None:
    """Raises: UnsupportedError for what this machine or this launch can't do."""
    import torch

    faults = []
    if params.precision == "16" and not torch.cuda.is_available():
        # transformers would take it and compute in 32 bits.
        why = "fp16 needs a GPU, and none is visible here"
        faults.append(Fault("--precision 16", why=why, fix="--precision bf16"))
    if params.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        why = f"{torch.cuda.get_device_name()} has no bf16"
        faults.append(Fault("--precision bf16", why=why, fix="--precision 16"))
    if params.torch_compile and not torch.cuda.is_available() and not _has_compiler():
        why = "torch.compile needs a C++ compiler, and none is found here"
        faults.append(Fault("--torch_compile true", why=why, fix="--torch_compile false, or install g++"))
    if params.attn_implementation == "flash_attention_2":
        if not _has_flash_attention():
            why = "it needs an NVIDIA GPU and the package flash-attn"
            faults.append(Fault("--attn_implementation flash_attention_2", why=why, fix="--attn_implementation sdpa"))
        elif params.precision == "32":
            why = "FlashAttention computes in 16 bits alone"
            faults.append(Fault("--attn_implementation flash_attention_2", why=why, fix="--precision bf16"))
    if params.apply_lora and params.finetune_in_4bit:
        faults += _faults_of_4bit(params)
    if params.apply_fsdp:
        faults += fsdp.faults(params, processes)
    if faults:
        raise UnsupportedError(*faults)


def _faults_of_4bit(params: FinetuneParams) -> list[Fault]:
    import torch
    from transformers.utils.import_utils import is_bitsandbytes_available

    without, what = "--finetune_in_4bit false", "--finetune_in_4bit true"
    if not torch.cuda.is_available():
        why = "no GPU is visible here, and on a CPU bitsandbytes packs 4-bit weights so that they can't be trained on"
        return [Fault(what, why=why, fix=without)]
    if not is_bitsandbytes_available():
        return [Fault(what, why="it needs the package bitsandbytes", fix=f'pip install ".[qlora]", or {without}')]
    if params.lora_type == "dora":
        why = "DoRA's norms are those of weights in full"
        return [Fault(f"{what} with --lora_type dora", why=why, fix="--lora_type lora")]
    return []


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _has_flash_attention() -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())
