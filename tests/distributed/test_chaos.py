"""Random faults. Whatever befalls a run, resumed to its end it gives the weights of one that nothing befell."""

import json
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import run as finetune
from finetune.core.errors import StoppedError, StorageError
from finetune.training import checkpoints
from tests.conftest import finetune_words
from tests.forking import Forks
from tests.launching import Launched, fill, launch, one_thread

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.thorough]
STEPS = 90
SETTINGS = {
    "per_device_eval_batch_size": 16,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": 6,
    "save_steps": 4,
    "save_total_limit": 3,
    "logging_strategy": "steps",
    "logging_steps": 1,
}
KINDS = ("SIGTERM", "SIGKILL", "killed in a save", "truncated file", "full disk")
LAUNCHES = ("alone", "azure", "torchrun", "azure", "torchrun")
CHAINS = [*(("prepared", i) for i in range(len(LAUNCHES))), ("prepared_pairs", 0), ("prepared_pairs", 1)]
FAULTS = 6  # in each chain


def words(prepared: Path, output: Path, how: str, resume: str = "true") -> list[str]:
    batch = 4 if how == "alone" else 2
    return finetune_words(
        prepared, output, **SETTINGS, per_device_train_batch_size=batch, resume_from_checkpoint=resume
    )


def history(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation."""
    state = json.loads((folder / "pytorch" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [(entry["step"], entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry]


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Path]:
    """How it was started and on which rows -> the folder of a run that nothing befell."""
    done: dict[str, Path] = {}
    return done


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one where this user may mount it, else a folder, which never fills up."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def step_of(run: Launched) -> int:
    found = [line.split("/")[0].split()[1] for line in run.said().splitlines() if line.startswith("step ")]
    return int(found[-1]) if found else 0


def strike(kind: str, run: Launched, disk: Path, chance: random.Random, processes: int) -> str:
    """Wait for a moment of the run, and let the fault happen to it. -> what it was."""
    begun = run.until(lambda: step_of(run))
    moment = begun + chance.randint(0, 5)
    run.until(lambda: step_of(run) >= moment)
    ranks = sorted(chance.sample(range(processes), chance.randint(1, processes)))
    folder = disk / "pytorch"
    if kind == "SIGTERM":
        for rank in ranks:
            run.send(rank, signal.SIGTERM)
        assert set(run.codes()) <= {StoppedError.exit_code, 1}, run.said()  # 1 is torchrun's
        assert "which is saved" in run.said()
        return f"SIGTERM on {ranks} after step {moment}"
    if kind == "full disk":
        left = chance.choice([0, 100_000, 300_000, 600_000])
        ballast = fill(disk, left)
        assert set(run.codes()) <= {StorageError.exit_code, 1}, run.said()
        ballast.unlink()
        return f"{left:,} bytes left on the disk after step {moment}"
    if kind == "killed in a save":
        torn = run.until(lambda: [path for path in folder.glob("checkpoint-*") if (path / "incomplete").exists()])
        run.send(0, signal.SIGKILL)
        assert 0 not in run.codes(), run.said()
        return f"SIGKILL in the middle of saving {torn[0].name}"
    run.send(ranks[0], signal.SIGKILL)
    assert 0 not in run.codes(), run.said()
    newest = next(iter(checkpoints.checkpoints(folder)), None)
    if kind == "SIGKILL" or newest is None:
        return f"SIGKILL of {ranks[0]} after step {moment}"
    harmed = chance.choice([path for path in newest.rglob("*") if path.is_file() and path.stat().st_size])
    with harmed.open("r+b") as file:
        file.truncate(harmed.stat().st_size // 2)
    return f"{newest.name}/{harmed.name} cut in half"


def run_to_its_end(folder: Path, given: list[str], how: str, forks: Forks) -> None:
    """Alone in this process: nothing is to befall it."""
    if how == "alone":
        with one_thread():
            finetune.main(given)
        return
    run = launch(folder, given, how, forks=forks)
    assert set(run.codes()) == {0}, run.said()


@pytest.mark.parametrize(("data", "chain"), CHAINS)
def test_faults(
    request: pytest.FixtureRequest,
    forks: Forks,
    tmp_path: Path,
    unbroken: dict[str, Path],
    disk: Path,
    data: str,
    chain: int,
) -> None:
    prepared: Path = request.getfixturevalue(data)
    how, chance = LAUNCHES[chain], random.Random(chain)
    processes = 1 if how == "alone" else 2
    kinds = [kind for kind in KINDS if kind != "full disk" or disk.is_mount()]
    kinds += [chance.choice(kinds) for _ in range(FAULTS - len(kinds))]
    chance.shuffle(kinds)
    same = f"{how} {data}"
    if same not in unbroken:
        unbroken[same] = tmp_path / "unbroken"
        run_to_its_end(unbroken[same], words(prepared, unbroken[same], how, "false"), how, forks)

    befell = []
    for kind in kinds:
        run = launch(tmp_path, words(prepared, disk, how), how, forks=forks)
        befell.append(strike(kind, run, disk, chance, processes))
        print(f"{how}: {befell[-1]}")
    run_to_its_end(tmp_path / "last", words(prepared, disk, how), how, forks)

    weights = [folder / "pytorch" / "model.safetensors" for folder in (disk, unbroken[same])]
    assert weights[0].read_bytes() == weights[1].read_bytes(), befell
    assert history(disk) == history(unbroken[same]), befell
    left = checkpoints.checkpoints(disk / "pytorch")
    assert len(left) <= SETTINGS["save_total_limit"] and [checkpoints.why_incomplete(path) for path in left] == [
        ""
    ] * len(left)
