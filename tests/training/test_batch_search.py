"""auto_find_batch_size in a process that really runs out of memory."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import run
from tests.conftest import build_tiny_model, finetune_words, prepare
from tests.forking import Forks
from tests.launching import launch, one_thread

pytestmark = pytest.mark.slow
ONE_ARENA = """
import ctypes
ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: another thread would take room of its own
"""
LIMITED = f"""{ONE_ARENA}
import os, resource, sys
from finetune import run
from finetune.training.trainer import FinetuneTrainer

room = int(os.environ["ROOM"]) * 2**20
training_step, limits = FinetuneTrainer.training_step, []

def limited(*arguments):
    # Forward and backward pass alone: a heap that was once filled counts as taken, though all of it is free again.
    in_use = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
    limits.append(in_use * 1024 + room)
    resource.setrlimit(resource.RLIMIT_DATA, (limits[0], -1))
    try:
        return training_step(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))

FinetuneTrainer.training_step = limited
run.main(sys.argv[1:])
"""
PROBED = f"""{ONE_ARENA}
import os, resource, sys
from finetune import run
from finetune.core import launch
from finetune.training import batch_search

fits, limits = batch_search.fits, []

def limited(*arguments):
    in_use = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
    limits.append(in_use * 1024 + int(os.environ["ROOM"]) * 2**20)
    if launch.rank() == launch.world_size() - 1:  # on one process alone
        resource.setrlimit(resource.RLIMIT_DATA, (limits[0], -1))
    try:
        return fits(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))

batch_search.fits = limited
run.main(sys.argv[1:])
"""
ROOM = 500  # MiB. Going backward, a window takes up to five activations of 32: 320 for two windows, 640 for four
ASKED = 8


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which one activation takes 32 MiB for each window, and data for it."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "tiny").mkdir()
    model = build_tiny_model(folder / "tiny", num_hidden_layers=1, intermediate_size=2**16)
    return prepare(folder, model, counts=(24, 3, 3), max_seq_length=128, doc_stride=32)


def two_steps(wide: Path, output: Path, **given: Any) -> list[str]:
    return finetune_words(
        wide, output, **given, max_steps=2, evaluation_strategy="steps", eval_steps=1, per_device_eval_batch_size=2
    )


def train_limited(forks: Forks, words: list[str]) -> str:
    """What a run with little room says, in a process of its own."""
    env = {**os.environ, "ROOM": str(ROOM)}
    command = [forks.python, "-c", LIMITED, *words]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("keep", ["true", pytest.param("false", marks=pytest.mark.thorough)])
def test_batch_is_halved_where_memory_runs_out(
    forks: Forks, wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: str
) -> None:
    """The weights are those of a run that is begun with what was found: nothing of the failed tries is left in them."""
    given = {"per_device_train_batch_size": ASKED, "auto_find_batch_size": "true", "keep_global_batch_size": keep}
    words = two_steps(wide, tmp_path / "limited", **given)
    said = train_limited(forks, words)
    tries = re.findall(r"^out of memory with per_device_train_batch_size (\d+); starting again with (\d+)", said, re.M)
    found = int(tries[-1][1])
    assert [int(size) for size, _ in tries] == [size for size in (8, 4, 2, 1) if size > found] and len(tries) > 1
    accumulation = ASKED // found if keep == "true" else 1
    also = f", gradient_accumulation_steps {accumulation}" if keep == "true" else ""
    assert f"auto_find_batch_size: {found}{also} fits into memory\n" in said

    limited = tmp_path / "limited" / "pytorch"
    resolved = yaml.safe_load((limited / "resolved_config.yaml").read_text())
    entry = resolved["per_device_train_batch_size"]
    assert (entry["value"], entry["used"]) == (ASKED, found) and "auto_find_batch_size" in entry["origin"]
    assert resolved["gradient_accumulation_steps"].get("used", 1) == accumulation

    told = {"per_device_train_batch_size": found, "gradient_accumulation_steps": accumulation}
    with one_thread():
        run.main(two_steps(wide, tmp_path / "told", **told))
    last = (limited / "checkpoint-2" / "model.safetensors").read_bytes()
    assert last == (tmp_path / "told" / "pytorch" / "checkpoint-2" / "model.safetensors").read_bytes()

    # The same command again, as a platform restarts a job that was preempted: it begins with what was found.
    shutil.rmtree(limited / "checkpoint-2")
    with one_thread():
        run.main([*words, "--resume_from_checkpoint", "true"])
    said = capsys.readouterr().out
    assert "going on from checkpoint-1\n" in said and f"per_device_train_batch_size: {found} (" in said
    assert last == (limited / "checkpoint-2" / "model.safetensors").read_bytes()


@pytest.mark.distributed
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("processes", "given"),
    [
        (2, {}),
        (1, {"apply_deepspeed": "true"}),
        (2, {"apply_deepspeed": "true", "keep_global_batch_size": "true"}),
    ],
)
def test_the_batch_is_found_before_processes_depend_on_one_another(
    request: pytest.FixtureRequest, wide: Path, tmp_path: Path, processes: int, given: dict[str, Any]
) -> None:
    if given:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make test-distributed")
    steps = {"max_steps": 2, "evaluation_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2}
    batch = {"per_device_train_batch_size": ASKED, "auto_find_batch_size": "true"}
    words = finetune_words(wide, tmp_path / "limited", **steps, **batch, **given)
    forks: Forks = request.getfixturevalue("forks_with_deepspeed" if given else "forks")
    limited = launch(tmp_path, words, "azure", processes, ("-c", PROBED), forks=forks, ROOM=ROOM)
    assert set(limited.codes()) == {0}, limited.said()
    found = int(re.findall(r"^auto_find_batch_size: (\d+)", limited.said(), re.M)[0])
    assert found < ASKED and f"out of memory with {ASKED} windows at a time; trying {ASKED // 2}\n" in limited.said()
    accumulation = ASKED // found if "keep_global_batch_size" in given else 1
    assert f"2 steps of {found * accumulation * processes} windows, " in limited.said()

    batch = {"per_device_train_batch_size": found, "gradient_accumulation_steps": accumulation}
    given = {name: value for name, value in given.items() if name == "apply_deepspeed"}
    words = finetune_words(wide, tmp_path / "told", **steps, **batch, **given)
    told = launch(tmp_path, words, "azure", processes, forks=forks)
    assert set(told.codes()) == {0}, told.said()
    weights = [(tmp_path / name / "pytorch" / "model.safetensors").read_bytes() for name in ("limited", "told")]
    assert weights[0] == weights[1]
