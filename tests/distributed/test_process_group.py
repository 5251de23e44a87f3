"""Collectives where there is nobody to ask: an engine's own group of one may have no backend for the CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed

from finetune.distributed import process_group


@pytest.fixture
def group_for_gpus_alone(tmp_path: Path) -> Iterator[None]:
    """The group that DeepSpeed makes on one GPU, as far as a CPU can have it."""
    store = distributed.FileStore(str(tmp_path / "store"))
    distributed.init_process_group("cuda:gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group_for_gpus_alone")
def test_one_process_asks_nobody(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        distributed.all_reduce(torch.tensor(1))  # what the engine's group can't do
    assert process_group.all_reduce_any(True) is True and process_group.all_reduce_any(False) is False
    assert process_group.broadcast_from_main(lambda: "found") == "found"
    assert process_group.gather_to_main(3) == [3]
    process_group.barrier()
    process_group.refuse_other_folders(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
