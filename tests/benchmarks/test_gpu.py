"""The benchmark of one GPU, on the CPU and for a second: it says the same things there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import WAYS, WITHOUT_PADDING, batches
from benchmarks.scaling import LENGTHS
from finetune.data.batches import INDICES
from tests.conftest import ROOT


def test_all_ways_have_the_same_windows() -> None:
    found = {way: batches(way, 32, 30) for way in WAYS}
    windows = [
        sorted(length for batch in of_epoch for length in batch["attention_mask"].sum(1).tolist())
        for of_epoch in found.values()
    ]
    assert windows[0] == windows[1] == windows[2] == windows[3] and len(windows[0]) == len(LENGTHS) // 32 * 32
    for way, of_epoch in found.items():
        assert all((INDICES in batch) is (way in WITHOUT_PADDING) for batch in of_epoch)
    assert {batch["input_ids"].shape for batch in found[WAYS[0]]} == {torch.Size([32, 384])}
    assert len({batch["input_ids"].shape for batch in found[WAYS[1]]}) > 10


@pytest.mark.slow
@pytest.mark.thorough
def test_it_reports(tmp_path: Path) -> None:
    words = [
        "--shape",
        "tiny",
        "--batch",
        "4",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--out",
        str(tmp_path / "gpu.json"),
    ]
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    # Nothing is recorded on a CPU, which is said, and the other ways are measured.
    assert f"{WAYS[3]}: there is no GPU" in said
    assert [line.partition("  ")[0] for line in said[-4:]] == ["matrix products", *WAYS[:3]]
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["ways"].keys() == set(WAYS[:3])
    assert all(0 < one["windows a second"] * 50 < one["tokens a second"] for one in report["ways"].values())
