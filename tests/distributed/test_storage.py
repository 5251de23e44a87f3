"""Output folders that fill up, and mounted ones that lack what local disks have."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import run as finetune
from finetune.core.errors import StoppedError, StorageError
from tests.conftest import finetune_words
from tests.forking import ALL, Forks
from tests.launching import fill, launch, one_thread, stopping

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 16,
    "max_steps": 20,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": 10,
    "logging_strategy": "steps",
    "logging_steps": 1,
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=False)


def ran_to_its_end(folder: Path, words: list[str], how: str, capsys: pytest.CaptureFixture[str], forks: Forks) -> str:
    """What it says; one that is alone needs no process of its own."""
    if how == "alone":
        with one_thread():
            finetune.main(words)
        return capsys.readouterr().out
    run = launch(folder, words, how, forks=forks)
    assert set(run.codes()) == {0}, run.said()
    return run.said()


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("alone", 100_000),
        pytest.param("alone", 0, marks=pytest.mark.thorough),
        pytest.param("azure", 400_000, marks=pytest.mark.thorough),
    ],
)
def test_a_disk_that_is_full_in_the_middle_of_a_save(
    forks: Forks,
    prepared: Path,
    tmp_path: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
    left: int,
) -> None:
    """Whether the weights, the optimizer or something small no longer fits."""
    run = launch(tmp_path, finetune_words(prepared, small_disk, **STEPS), how, forks=forks)
    run.until(lambda: "step 11/" in run.said())
    ballast = fill(small_disk, left)
    assert set(run.codes()) == {StorageError.exit_code}, run.said()
    said = run.said()
    assert said.count("storage error: ") == 1 and "more room" in said and "Traceback" not in said
    folder = small_disk / "pytorch"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-10"]

    ballast.unlink()
    resumed = finetune_words(prepared, small_disk, **STEPS, resume_from_checkpoint="true")
    unbroken = finetune_words(prepared, tmp_path / "unbroken", **STEPS)
    assert "going on from checkpoint-10\n" in ran_to_its_end(tmp_path / "resumed", resumed, how, capsys, forks)
    ran_to_its_end(tmp_path / "unbroken", unbroken, how, capsys, forks)
    weights = [path / "pytorch" / "model.safetensors" for path in (tmp_path / "unbroken", small_disk)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.thorough
def test_a_mounted_folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes whose output folder has no locks, no links, no renames from or to the outside, and takes nothing
    from the second one. It has a checkpoint of an earlier run."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler for the library that takes these away")
    library, mount = tmp_path / "bare_mount.so", tmp_path / "mount"
    source = Path(__file__).with_name("bare_mount.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    bare = {"LD_PRELOAD": library, "BARE_MOUNT": mount}
    (mount / "pytorch" / "checkpoint-30").mkdir(parents=True)
    (mount / "pytorch" / "checkpoint-30" / "complete").write_text(json.dumps({"run": {}, "files": {}}))
    given = {**STEPS, "max_steps": 6, "eval_steps": 2}
    words = finetune_words(prepared, mount, **given)
    with Forks(tmp_path, {**os.environ, **{name: str(value) for name, value in bare.items()}}, ALL) as forks:
        run = launch(tmp_path, words, code=("-c", stopping(3)), forks=forks, **bare)
        assert run.codes() == [StoppedError.exit_code] * 2, run.said()
        assert (mount / "pytorch" / "earlier-run-1" / "checkpoint-30" / "complete").is_file()
        resumed = launch(tmp_path, [*words, "--resume_from_checkpoint", "true"], forks=forks, **bare)
        assert resumed.codes() == [0, 0], resumed.said()
    assert (mount / "pytorch" / "mlflow.db").stat().st_size > 0
    touch = [sys.executable, "-c", f"open('{mount}/stray', 'w')"]
    for rank, code in (("0", 0), ("1", 1)):
        own = {**os.environ, **{name: str(value) for name, value in bare.items()}, "RANK": rank}
        assert subprocess.run(touch, env=own, capture_output=True, check=False).returncode == code


def test_a_folder_that_only_one_machine_sees(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    """It is refused before training, not after."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    code = "; ".join(
        [
            "from finetune import run",
            "from finetune.core.process import run_main",
            "from finetune.core import timing",
            "timing.SEEN = 2.0",
            "run_main(run.main)",
        ]
    )
    words = finetune_words(prepared, Path("out"), **STEPS)
    run = launch(tmp_path, words, code=("-c", code), folders=(here, there), forks=forks)
    assert run.codes() == [StorageError.exit_code] * 2, run.said()
    assert "process 1 does not see what process 0 writes in out/pytorch" in run.said() and "step 1/" not in run.said()
    assert "all of them see" in run.said() and not [*here.rglob(".seen*")]
