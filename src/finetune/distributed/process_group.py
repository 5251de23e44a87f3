"""The process group of a run, and its collectives on the CPU. Alone, a process is a group of its own."""

import os
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from finetune.core import timing
from finetune.core.errors import Fault, PeerError, StorageError, first_line
from finetune.core.launch import is_main_process, local_rank, rank, world_size
from finetune.distributed.hangs.pulse import waiting

T = TypeVar("T")


def join(meet: Callable[[Store], None], patience: float) -> None:
    """Form PyTorch's process group; `meet` is called before, with the store that all processes share.

    A collective may take `patience` in seconds at least: who hangs is to be found by name before it gives up.
    Raises: PeerError if a process doesn't come to the rendezvous.
    """
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local_rank())
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timing.JOIN)))
        meet(PrefixStore("finetune", store))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=store,
            rank=rank(),
            world_size=world_size(),
            timeout=timedelta(seconds=max(timing.COLLECTIVE, patience)),
        )
    except (distributed.DistError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"
        what = f"process {rank()} of {world_size()} can't join the process group"
        fix = "set another MASTER_PORT if that one is in use"
        raise PeerError(Fault(what, where=where, why=first_line(error), fix=fix)) from None


def leave() -> None:
    """End the process group."""
    distributed.destroy_process_group()


def _alone() -> bool:
    """Return whether there is nobody to ask: a group of one may be an engine's own, without a backend for the CPU."""
    return world_size() == 1 or not distributed.is_initialized()


def all_reduce_any(flag: bool) -> bool:
    """Return whether the flag is true on any process."""
    if _alone():
        return flag
    found = torch.tensor(int(flag))
    with waiting():
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


def broadcast_from_main(find: Callable[[], T]) -> T:
    """Return on all processes what the main one finds: two machines may not see the same in a mounted folder."""
    if _alone():
        return find()
    found: list[Any] = [find() if is_main_process() else None]
    with waiting():
        distributed.broadcast_object_list(found, device=torch.device("cpu"))
    value: T = found[0]
    return value


def gather_to_main(value: T) -> list[T]:
    """Return on the main process the values of all, by rank; on the others an empty list."""
    if _alone():
        return [value]
    found: list[Any] = [None] * world_size() if is_main_process() else []
    with waiting():
        distributed.gather_object(value, found if is_main_process() else None)
    return found


def barrier() -> None:
    """Wait for all processes, on the CPU: distributed.barrier would take the GPU and NCCL."""
    all_reduce_any(False)


def in_step(model: torch.nn.Module) -> bool:
    """Return whether each process holds shards of the weights (ZeRO-3), so that a forward pass takes all processes."""
    return world_size() > 1 and any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def refuse_other_folders(folder: Path) -> None:
    """Raise StorageError if a process does not see what the main one writes in the folder."""
    if _alone():
        return
    note = folder / broadcast_from_main(lambda: f".seen-by-all-{secrets.token_hex(4)}")
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        note.touch()
    barrier()
    until = time.monotonic() + timing.SEEN
    while not (seen := note.exists()) and time.monotonic() < until:
        time.sleep(timing.SEEN_POLL)
    unseen_by_any = all_reduce_any(not seen)
    if is_main_process():
        note.unlink()
    if not seen:
        why = "processes on several machines need an output folder that all of them see; in Azure ML, mode rw_mount"
        raise StorageError(Fault(f"process {rank()} does not see what process 0 writes in {folder}", why=why))
    if unseen_by_any:
        barrier()  # which ends with the error of another process
