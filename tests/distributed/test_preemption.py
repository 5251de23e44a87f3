"""A run that is told to stop, or that loses a process, ends as a whole; resumed, it ends with the same weights."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from finetune import run as finetune
from finetune.core.errors import PeerError, StoppedError
from finetune.training.trainer import FinetuneTrainer
from tests.conftest import finetune_words
from tests.forking import Forks
from tests.launching import Launched, launch, port

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = {
    "per_device_train_batch_size": 8,  # 8 steps in an epoch
    "per_device_eval_batch_size": 16,
    "max_steps": 40,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": 20,
    "logging_strategy": "steps",
    "logging_steps": 1,
}


def words(prepared: Path, output: Path, **parameters: object) -> list[str]:
    return finetune_words(prepared, output, **{**STEPS, **parameters})


def weights(folder: Path) -> bytes:
    return (folder / "pytorch" / "model.safetensors").read_bytes()


def steps_saved(folder: Path) -> list[int]:
    found = [int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob("pytorch/checkpoint-*/complete")]
    return sorted(found)


SAVING = """
import os, signal, sys
from finetune import run
from finetune.core import launch
from finetune.results import proof
from finetune.core.process import run_main

prove = proof.prove

def proved(*arguments):
    found = prove(*arguments)
    os.kill(int(os.environ["OTHER"]), signal.SIGTERM)
    return found

proof.prove = proved
run_main(run.main)
"""


@pytest.fixture(scope="module")
def whole(forks: Forks, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Launched, Launched]:
    """A run that nobody disturbs before its weights are saved; then its second process, which waits, has a SIGTERM."""
    folder = tmp_path_factory.mktemp("unbroken")
    variables = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}
    waiting = launch(folder / "1", words(prepared, folder), "alone", forks=forks, **variables, RANK=1, LOCAL_RANK=1)
    own = {**variables, "RANK": 0, "LOCAL_RANK": 0, "OTHER": waiting.running[0].pid}
    saving = launch(folder / "0", words(prepared, folder), "alone", code=("-c", SAVING), forks=forks, **own)
    saving.codes()
    waiting.codes()
    return folder, saving, waiting


@pytest.fixture(scope="module")
def unbroken(whole: tuple[Path, Launched, Launched]) -> bytes:
    """Its weights."""
    return weights(whole[0])


def test_sigterm_on_a_process_that_only_waits(whole: tuple[Path, Launched, Launched]) -> None:
    """While the main one saves the model."""
    _, saving, waiting = whole
    assert saving.codes() == waiting.codes() == [0], saving.said() + waiting.said()


def in_training(run: Launched) -> None:
    """In the middle of the second epoch, whose order of rows is another one."""
    run.until(lambda: "step 10/" in run.said())


@pytest.mark.parametrize(
    ("how", "ranks"),
    [
        ("azure", (1,)),
        pytest.param("torchrun", (0, 1), marks=pytest.mark.thorough),
        pytest.param("azure", (0,), marks=pytest.mark.thorough),
        pytest.param("mpirun", (1,), marks=pytest.mark.thorough),
        pytest.param("nodes", (1,), marks=pytest.mark.thorough),
    ],
)
def test_sigterm_on_any_rank(
    forks: Forks, prepared: Path, tmp_path: Path, unbroken: bytes, how: str, ranks: tuple[int, ...]
) -> None:
    run = launch(tmp_path, words(prepared, tmp_path), how, forks=forks)
    in_training(run)
    for rank in ranks:
        run.send(rank, signal.SIGTERM)
    codes = run.codes(60)
    # torchrun ends with 1 whatever its processes end with, and says what they said
    assert set(codes) == ({1} if how in ("torchrun", "nodes") else {StoppedError.exit_code}), run.said()
    (step,) = steps_saved(tmp_path)
    assert 10 <= step < 20
    assert run.said().count("\nstopped: ") == 1 and f"after step {step} of 40, which is saved" in run.said()
    assert not (tmp_path / "pytorch" / "model.safetensors").exists()

    resumed = launch(tmp_path, words(prepared, tmp_path, resume_from_checkpoint="true"), forks=forks)
    assert resumed.codes() == [0, 0], resumed.said()
    assert f"going on from checkpoint-{step}\n" in resumed.said()
    assert weights(tmp_path) == unbroken


@pytest.mark.thorough
def test_sigterm_to_the_launcher(forks: Forks, prepared: Path, tmp_path: Path, unbroken: bytes) -> None:
    """As platforms send it: torchrun passes it on to whole groups of processes, those that prepare batches too."""
    run = launch(tmp_path, words(prepared, tmp_path, dataloader_num_workers=2), "torchrun")
    in_training(run)
    run.running[0].send_signal(signal.SIGTERM)
    assert run.codes(60) != [0]
    (step,) = steps_saved(tmp_path)
    assert f"after step {step} of 40, which is saved" in run.said() and "DataLoader" not in run.said()

    resumed = launch(tmp_path, words(prepared, tmp_path, resume_from_checkpoint="true"), forks=forks)
    assert resumed.codes() == [0, 0], resumed.said()
    assert weights(tmp_path) == unbroken


EVALUATED = {"eval_steps": 2, "max_steps": 8}


@pytest.fixture(scope="module")
def evaluated(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with four evaluations that nobody disturbs."""
    folder = tmp_path_factory.mktemp("evaluated")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    finetune.main(words(prepared, folder, **EVALUATED))
    return folder


@pytest.mark.parametrize("save_steps", [-1, 7])
def test_sigterm_at_an_evaluation(
    prepared: Path, tmp_path: Path, evaluated: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int
) -> None:
    """It is evaluated, saved once, and the resumed run does not evaluate it again."""
    evaluate = FinetuneTrainer.evaluate

    def signalled(trainer: FinetuneTrainer, *arguments: Any, **keywords: Any) -> Any:
        if trainer.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainer, *arguments, **keywords)

    given = {**EVALUATED, "save_steps": save_steps}
    with monkeypatch.context() as patched, pytest.raises(StoppedError, match="after step 4 of 8, which is saved"):
        patched.setattr(FinetuneTrainer, "evaluate", signalled)
        finetune.main(words(prepared, tmp_path, **given, logging_steps=2))
    finetune.main(words(prepared, tmp_path, **given, resume_from_checkpoint="true"))
    assert weights(tmp_path) == weights(evaluated)
    states = [
        (folder / "pytorch" / "checkpoint-8" / "trainer_state.json").read_text() for folder in (evaluated, tmp_path)
    ]
    assert states[0].count('"eval_loss"') == states[1].count('"eval_loss"') == 4


BEFORE = """
import time
from finetune import run
from finetune.training import attempts
from finetune.core.process import run_main

def tell(*_):
    print("about to train", flush=True)
    time.sleep(30)

attempts.tell = tell
run_main(run.main)
"""


def test_sigterm_before_training(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    run = launch(tmp_path, words(prepared, tmp_path), "alone", code=("-c", BEFORE), forks=forks)
    run.until(lambda: "about to train" in run.said())
    run.running[0].send_signal(signal.SIGTERM)
    assert run.codes(20) == [StoppedError.exit_code]
    assert "\nstopped: stopped by SIGTERM outside of training" in run.said() and "Traceback" not in run.said()


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ("azure", 1),
        ("azure", 0),
        pytest.param("torchrun", 1, marks=pytest.mark.thorough),
        pytest.param("nodes", 0, marks=pytest.mark.thorough),
    ],
)
def test_sigkill_of_a_rank(forks: Forks, prepared: Path, tmp_path: Path, how: str, lost: int) -> None:
    run = launch(tmp_path, words(prepared, tmp_path, max_steps=4000), how, forks=forks)
    in_training(run)
    run.send(lost, signal.SIGKILL)
    killed = time.monotonic()
    codes = run.codes(60)
    assert time.monotonic() - killed < 30
    said = run.said(0 if how == "torchrun" else 1 - lost)
    if how == "azure":
        assert codes[lost] == -signal.SIGKILL and codes[1 - lost] == PeerError.exit_code
        assert said.count("run ended: ") == 1 and "Traceback" not in said
    assert f"process {lost} of 2" in said and "was lost without an error message" in said
    assert "--resume_from_checkpoint true" in said and 0 not in codes


TRACKED = """
import os, signal
from sqlite3 import dbapi2
from finetune import run
from finetune.core.process import run_main

connect = dbapi2.connect

def interrupted(*arguments, **keywords):
    dbapi2.connect = connect
    os.kill(os.getpid(), signal.SIGTERM)
    return connect(*arguments, **keywords)

dbapi2.connect = interrupted
run_main(run.main)
"""


def test_sigterm_while_the_tracking_database_is_made(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    """What is left of it does not stop the same command from running again."""
    given = words(prepared, tmp_path, max_steps=2, eval_steps=2)
    none_yet = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/new.db"}
    stopped = launch(tmp_path, given, "alone", code=("-c", TRACKED), forks=forks, **none_yet)
    assert stopped.codes(60) == [StoppedError.exit_code], stopped.said()
    assert "stopped by SIGTERM before training" in stopped.said()
    again = launch(tmp_path, given, "alone", forks=forks, **none_yet)
    assert again.codes(120) == [0], again.said()


SLOW = """
import sys, time
from finetune import run
from finetune.training import checkpoints
from finetune.core.process import run_main

finish = checkpoints.finish

def slowly(*arguments):
    time.sleep(7)  # longer than another process that leaves would wait
    finish(*arguments)

checkpoints.finish = slowly
run_main(run.main)
"""


def test_a_slow_disk_does_not_lose_what_is_said_to_be_saved(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    run = launch(tmp_path, words(prepared, tmp_path), code=("-c", SLOW), forks=forks)
    in_training(run)
    for process in run.running:
        process.send_signal(signal.SIGTERM)
    assert run.codes() == [StoppedError.exit_code] * 2, run.said()
    assert "which is saved" in run.said() and len(steps_saved(tmp_path)) == 1
