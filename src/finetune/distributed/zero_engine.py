"""Gather the weights of a model that DeepSpeed has sharded, and read its shards as data."""

import contextlib
import copyreg
import io
import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune.core import timing
from finetune.core.console import say


def gather(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return, on the main process, the trained weights by name, in 32 bits on the CPU; every process must call it.

    They are the optimizer's own 32 bits, not what a forward pass in 16 bits is computed with.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    main = torch.distributed.get_rank() == 0
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        with (
            deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else contextlib.nullcontext()
        ):
            whole = safe_get_full_fp32_param(parameter)
            if main:
                found[name] = (parameter if whole is None else whole).detach().float().cpu().clone()
    return found


def shards_of(folder: Path) -> bool:
    """Return whether the folder is a checkpoint that ZeRO has sharded."""
    return (folder / "latest").is_file() and any(folder.glob("global_step*/*_optim_states.pt"))


def put_together(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a sharded checkpoint by name, in 32 bits, whatever number of processes wrote it.

    Its own model.safetensors holds the 16 bits of the forward pass, which most updates of a small rate are lost in.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    said = io.StringIO()  # a dozen lines about its shards
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        weights: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    return {name: tensor.clone().contiguous() for name, tensor in weights.items()}  # tied ones share memory


def classes_of_shards() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Return the classes that DeepSpeed's checkpoints hold besides tensors, numbers and text."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def write_data_alone() -> None:
    """Let the one enum in DeepSpeed's checkpoints be written as its class and value, as most versions of Python do.

    Python 3.11.0 to 3.11.3 write a call of getattr, which is not read again as data.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


def forget() -> None:
    """Let the models that are loaded from now on not be sharded."""
    unset_hf_deepspeed_config()


def quiet() -> None:
    """Leave out what DeepSpeed prints, rather than logs, when its shared memory for CPUs is there."""
    backend: Any = import_module("deepspeed.comm.torch")  # deepspeed.comm's own name `torch` is PyTorch
    backend.print = lambda *_: None


def clear_stale_locks() -> None:
    """Remove the lock that a killed build of DeepSpeed's kernels leaves, and which the next would wait for without end.

    See pytorch/pytorch#189245.
    """
    import psutil
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("**/lock"):
        with contextlib.suppress(FileNotFoundError):  # once it is gone, the build is done
            while not any(process.info["cwd"] == str(lock.parent) for process in psutil.process_iter(["cwd"])):
                if time.time() - lock.stat().st_mtime > timing.STALE:
                    lock.unlink()
                    say(f"removed {lock}, left by a build that was killed")
                time.sleep(timing.STALE_POLL)
