"""Start-up: from a command to the end of its first step, each time in a new process.

python -m benchmarks.speed.starting WAY FOLDER is such a process; rows, model and ways are those of training.py.
"""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import mean

from benchmarks.speed import training
from benchmarks.speed.harness import ROOT, Case, Meter, Way, Work
from benchmarks.speed.training import BATCH, LENGTHS, PREPARE, QA

WAYS = {"stock": partial(training.stock, QA, tuned=True, bf16=False), "finetune": partial(training.ours, QA, {})}


class FirstStep(Meter):
    """Ends the process as soon as a step has been made."""

    def __init__(self) -> None:
        super().__init__(1, "wall", sys.stderr)

    def done(self, work: Work) -> None:
        os._exit(0)


def start(way: str, folder: Path, meter: Meter) -> None:
    """Start one process after another."""
    while True:
        shutil.rmtree(folder / "finetune-", ignore_errors=True)  # what the one before has left
        command = [sys.executable, "-m", "benchmarks.speed.starting", way, str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
        meter.done(Work(1))


Each = partial(Way, goes_with="windows", warm_up=1)
CASES = [
    Case(
        name=f"start_{QA}",
        what=f"a command makes its first step, of {BATCH} windows, in fp32; a window of the table is a start",
        prepare=PREPARE[QA],
        tokens=mean(LENGTHS[QA]),
        ways={
            "stock": Each("transformers' Trainer, grouped by length", partial(start, "stock")),
            "finetune": Each("finetune run, with its checks of model, data and memory", partial(start, "finetune")),
        },
        baselines=("stock",),
    )
]

if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), FirstStep())
