"""The checks for GPUs, as far as a CPU can tell: their parameters are there, and one of them runs."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks import gpu_checks
from benchmarks.gpu_checks import CHECKS, Check, Place
from finetune.params.components import TASKS
from tests.conftest import ROOT


def test_parameters_are_those_of_the_component() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert set(check.given) <= {one.name for one in fields(TASKS[check.task].finetune)}, check.name


def test_what_can_be_tried_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks.torch.cuda, "device_count", lambda: 1)
    gpus, cpu = (Place(tmp_path, tmp_path, cpu=on_cpu) for on_cpu in (False, True))
    assert Check("a").lacking(gpus) == ""
    assert Check("a", gpus=2).lacking(gpus) == "2 GPUs are needed, there are 1"
    assert Check("a").lacking(cpu) == "on GPUs alone"
    assert Check("a", gpus=2, on_cpu=True).lacking(cpu) == ""
    assert Check("a", packages=("no_such_package",), on_cpu=True).lacking(cpu) == "no_such_package not installed"


@pytest.mark.parametrize(
    ("code", "printed", "why"),
    [
        (0, "on cuda", ""),
        (0, "on cpu", "it doesn't say 'on cuda'"),
        (6, "an error", "exit code 6 instead of 0: an error"),
    ],
)
def test_a_run_that_ends_otherwise(code: int, printed: str, why: str, tmp_path: Path) -> None:
    place, check = Place(tmp_path, tmp_path, cpu=False), Check("a", says="on cuda")
    process = place.begin("a", ["-c", f"import sys; print({printed!r}); sys.exit({code})"])
    assert gpu_checks.ended(place, check, process) == why


@pytest.mark.slow
@pytest.mark.thorough
def test_processes_on_the_cpu(tmp_path: Path) -> None:
    if not gpu_checks.MODEL.is_dir():
        pytest.skip("make demo fetches the model")
    words = ["benchmarks/gpu_checks.py", str(tmp_path / "out"), "--cpu", "lora", "bf16"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 ok, 0 failed, 1 skipped")
