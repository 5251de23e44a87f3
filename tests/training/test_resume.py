"""A run that is killed and goes on ends with the weights of one that wasn't."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import run
from tests.conftest import finetune_words
from tests.launching import one_thread

pytestmark = pytest.mark.slow
CADENCE = 10
STEPS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "num_train_epochs": 2,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": CADENCE,
    "logging_strategy": "steps",
    "logging_steps": 1,
}


def words(prepared: Path, output: Path, resume: str = "false") -> list[str]:
    return finetune_words(prepared, output, **STEPS, resume_from_checkpoint=resume)


def steps(lines: list[str]) -> list[tuple[int, int]]:
    """(step, steps in all) of every line that logs a training loss."""
    found = (re.match(r"step (\d+)/(\d+) .*gradient norm", line) for line in lines)
    return [(int(match[1]), int(match[2])) for match in found if match]


def complete(folder: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*/complete"))


def test_killed_in_mid_epoch(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_thread():
        run.main(words(prepared, tmp_path / "unbroken"))
    said = capsys.readouterr().out
    (_, total), *_ = reached = steps(said.splitlines())
    assert len(reached) == total and total // 2 > 2 * CADENCE

    command = [sys.executable, "-m", "finetune.run", *words(prepared, tmp_path / "broken")]
    broken = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert broken.stdout is not None
    lines: list[str] = []
    for line in broken.stdout:
        lines.append(line)
        if steps([line]) and steps([line])[0][0] > CADENCE + 2:  # far from the next checkpoint
            broken.kill()
    assert broken.wait() == -9, "".join(lines)
    folder = tmp_path / "broken" / "pytorch"
    last = steps(lines)[-1][0]
    assert complete(folder) == [CADENCE] and CADENCE < last < 2 * CADENCE < total // 2
    assert not (folder / "model.safetensors").exists()

    with one_thread():
        run.main(words(prepared, tmp_path / "broken", resume="true"))
    said = capsys.readouterr().out
    assert f"going on from checkpoint-{CADENCE}\n" in said
    assert [step for step, _ in steps(said.splitlines())] == list(range(CADENCE + 1, total + 1))
    for name in ("model.safetensors", f"checkpoint-{max(complete(folder))}/model.safetensors"):
        wanted, got = ((tmp_path / run / "pytorch" / name).read_bytes() for run in ("unbroken", "broken"))
        assert got == wanted, name
