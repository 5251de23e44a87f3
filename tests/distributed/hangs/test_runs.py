"""A process that is alive and does nothing ends the run, by name and with the stacks; a slow one is named."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.core.errors import PeerError
from finetune.distributed.hangs.pulse import FACTORS
from tests.conftest import finetune_words
from tests.forking import Forks
from tests.launching import Launched, is_running, launch

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
TIMEOUT = 0.25  # minutes, of a step, which takes a fifth of a second; the libraries are imported in four times that
LATER = 180  # seconds after which a run that hangs has ended, at most: 25, or more where the machine is busy
STEPS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 16,
    "max_steps": 4000,
    "evaluation_strategy": "steps",
    "eval_steps": 2000,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "hang_timeout": TIMEOUT,
}
STACKS = "stacks of process {} of {}, the newest call first:"


def words(prepared: Path, output: Path, **parameters: object) -> list[str]:
    return finetune_words(prepared, output, **{**STEPS, **parameters})


def in_training(run: Launched) -> None:
    run.until(lambda: "step 3/" in run.said(), 300)  # DeepSpeed starts slowly where the machine is busy


def code_of(run: Launched, i: int = 0) -> int:
    run.until(lambda: run.running[i].poll() is not None, LATER)
    return run.running[i].wait()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Any]:
    """Start runs, of which nothing is left."""
    runs = []

    def start(*arguments: Any, **keywords: Any) -> Launched:
        runs.append(launch(tmp_path, *arguments, **keywords))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=pytest.mark.thorough)])
def test_sigstop_of_a_rank(forks: Forks, prepared: Path, tmp_path: Path, launched: Any, stopped: int) -> None:
    """Process 0 hears from all; if it is stopped itself, the others notice."""
    run = launched(words(prepared, tmp_path), forks=forks)
    in_training(run)
    run.send(stopped, signal.SIGSTOP)
    began = time.monotonic()
    assert code_of(run, 1 - stopped) == PeerError.exit_code
    assert time.monotonic() - began > TIMEOUT * 60
    said = run.said(1 - stopped)
    assert said.count("run ended: ") == 1 and f"process {stopped} of 2, on " in said, said
    assert "hangs: no sign of life for " in said and "s, while others wait in step " in said
    assert STACKS.format(1 - stopped, 2) in said and "trainer.py" in said  # where it waited for the other
    assert "--hang_timeout" in said and "--resume_from_checkpoint true" in said


NEVER_A_WORD = """
import os, signal, sys, time
from pathlib import Path
from torch import distributed
from finetune.core import launch, process
from finetune.distributed.failure import joined

def main(argv):
    with joined(Path(sys.argv[1]), 0.1):
        if launch.rank() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(3600)

process.run_main(main)
"""


@pytest.mark.thorough
def test_a_main_process_that_never_says_a_word(tmp_path: Path, launched: Any) -> None:
    """It is stopped as soon as the others are connected with it: they name it, and not themselves."""
    run = launched([str(tmp_path)], code=("-c", NEVER_A_WORD))
    assert code_of(run, 1) == PeerError.exit_code
    assert "process 0 of 2, on " in run.said(1) and "hangs: no sign of life for " in run.said(1)
    assert "while others wait in the start of the run" in run.said(1)


@pytest.mark.thorough
@pytest.mark.parametrize("stage", [2, 3])
def test_sigstop_of_a_rank_with_zero(prepared: Path, tmp_path: Path, launched: Any, stage: int) -> None:
    pytest.importorskip("deepspeed", reason='DeepSpeed is not installed: pip install ".[deepspeed]"')
    run = launched(words(prepared, tmp_path, apply_deepspeed="true", deepspeed_stage=stage))
    in_training(run)
    run.send(1, signal.SIGSTOP)
    assert code_of(run) == PeerError.exit_code
    assert "process 1 of 2, on " in run.said() and "hangs: no sign of life for " in run.said()


@pytest.mark.thorough
def test_sigstop_under_torchrun(prepared: Path, tmp_path: Path, launched: Any) -> None:
    """torchrun ends what is left, with a SIGKILL after 30 s; rank 1 speaks for process 0."""
    run = launched(words(prepared, tmp_path), "torchrun")
    in_training(run)
    run.send(0, signal.SIGSTOP)
    assert run.codes(LATER + 60) == [1]
    assert "process 0 of 2, on " in run.said() and "hangs: no sign of life" in run.said()
    assert "exitcode  : 10" in run.said()


BLOCKED = """
import os, sys, time
from pathlib import Path
from finetune import run
from finetune.core import launch, process
from finetune.training import trainer

collate = trainer.collate

def blocking(*arguments, **keywords):
    if launch.rank() == launch.world_size() - 1:
        if Path("NOW").exists():
            print("blocked as", os.getpid(), file=sys.stderr, flush=True)
            BLOCK
        time.sleep(SLOW)
    return collate(*arguments, **keywords)

trainer.collate = blocking
process.run_main(run.main)
"""


def blocked(folder: Path, how: str = "time.sleep(3600)", slow: float = 0) -> tuple[str, str]:
    """Code whose last process is slow to collate, and blocks there once there is a file `now` in the folder."""
    return "-c", BLOCKED.replace("NOW", str(folder / "now")).replace("BLOCK", how).replace("SLOW", str(slow))


@pytest.mark.thorough
def test_a_rank_that_is_slow_and_then_blocks(prepared: Path, tmp_path: Path, launched: Any) -> None:
    """Both answer, and one waits for the other in a collective: the one whose data are missing is named."""
    run = launched(words(prepared, tmp_path), code=blocked(tmp_path, slow=0.3))
    named = "note: process 1 is slow: "
    run.until(lambda: named in run.said())
    assert "s of own work a step" in run.said().split(named)[1].splitlines()[0]
    (tmp_path / "now").touch()
    assert [code_of(run), code_of(run, 1)] == [PeerError.exit_code] * 2
    for i in range(2):
        said = run.said(i)
        assert said.count("run ended: ") == 1 and "process 1 of 2, on " in said, said
        assert "hangs: no progress for " in said and "s, in step " in said
        assert STACKS.format(i, 2) in said
    assert "in blocking" in run.said(1) and "in blocking" not in run.said(0)
    assert run.said().count(named) == 1 and "process 0 is slow" not in run.said()


@pytest.mark.thorough
def test_a_worker_that_blocks(prepared: Path, tmp_path: Path, launched: Any) -> None:
    """Of one process alone. The stacks of the worker are shown, and nothing of it is left."""
    run = launched(words(prepared, tmp_path, dataloader_num_workers=1), "alone", code=blocked(tmp_path))
    in_training(run)
    (tmp_path / "now").touch()
    assert code_of(run) == PeerError.exit_code
    said = run.said()
    assert "process 0 of 1, on " in said and "hangs: no progress for " in said, said
    assert "stacks of its worker" in said and "in blocking" in said
    worker = int(said.split("blocked as ")[1].split()[0])
    until = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(worker)


@pytest.mark.thorough
def test_a_process_that_holds_the_interpreter(prepared: Path, tmp_path: Path, launched: Any) -> None:
    """No thread of Python gets to run; one of C ends it, after the longest limit."""
    code = blocked(tmp_path, "__import__('ctypes').PyDLL(None).sleep(3600)")
    run = launched(words(prepared, tmp_path), "alone", code=code)
    in_training(run)
    (tmp_path / "now").touch()
    run.until(lambda: "blocked as" in run.said())
    run.until(lambda: run.running[0].poll() is not None, FACTORS["start"] * TIMEOUT * 60 + LATER)
    assert run.running[0].wait() == 1 and "in blocking" in run.said()


@pytest.mark.thorough
def test_a_save_that_stalls(prepared: Path, tmp_path: Path, launched: Any) -> None:
    """On the main process, while the other one waits for it; after twice the time of a step."""
    code = """
import time
from finetune import run
from finetune.core import process
from finetune.training import checkpoints

checkpoints.finish = lambda *arguments: time.sleep(3600)
process.run_main(run.main)
"""
    run = launched(words(prepared, tmp_path, eval_steps=5), code=("-c", code))
    run.until(lambda: "validation loss" in run.said())
    began = time.monotonic()
    run.until(lambda: run.running[0].poll() is not None, LATER + 30)
    assert time.monotonic() - began > FACTORS["save"] * TIMEOUT * 60
    assert [code_of(run), code_of(run, 1)] == [PeerError.exit_code] * 2
    for i in range(2):
        assert "process 0 of 2, on " in run.said(i) and "in the save after step 5" in run.said(i), run.said(i)
