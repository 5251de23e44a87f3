"""What `make bench` makes of what was measured, and its windows; the whole of it in the thorough tier."""

import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from benchmarks.speed import harness, reading, stock, training
from benchmarks.speed.cases import CASES
from benchmarks.speed.harness import Case, Meter, Round, Way, Work
from benchmarks.speed.results import summary, table
from tests.conftest import ROOT


def of(windows: int, tokens: int, operations: float, seconds: float) -> Round:
    return Round(windows, tokens, operations, seconds, peak_memory=2_000_000_000, load=1.0)


WAYS = {
    "stock": Way("all padded", print, goes_with="windows"),
    "ours": Way("grouped", print),
    "peak": Way("multiplied", print),
}
CASE = Case("training", "windows", print, tokens=100.0, ways=WAYS, baselines=("stock",))


def test_ratios_are_those_within_a_round() -> None:
    """The machine is half as fast in the second round: rates fall, ratios and shares of the peak stay."""
    rounds = {
        "stock": [of(20, 1500, 1500e6, 10.0), of(10, 2000, 2000e6, 10.0)],
        "ours": [of(10, 4000, 4000e6, 10.0), of(25, 2000, 2000e6, 10.0)],
        "peak": [of(0, 0, 8000e6, 10.0), of(0, 0, 4000e6, 10.0)],
    }
    ways = summary(CASE, rounds)["ways"]
    assert ways["ours"]["lowest_and_highest"] == [2.0, 4.0]  # by tokens, whichever windows a round had
    assert ways["stock"]["lowest_and_highest"] == [1.0, 2.0]  # by windows, as each takes the same time
    assert ways["ours"]["times"] == {"stock": 2.0} and ways["stock"]["times"] == {"stock": 1.0}
    assert ways["ours"]["share_of_peak"]["peak"] == pytest.approx(0.5)
    assert ways["stock"]["share_of_peak"]["peak"] == pytest.approx(0.25)
    lines = table("training", summary(CASE, rounds)).splitlines()
    assert "| ours: grouped | 3.0 (2.0 to 4.0) | 2.00 | 50% | 2.00 GB |" in lines


def test_the_meter_waits_between_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces warm up; a round ends with the first piece after its seconds."""
    clock: Iterator[float] = iter(range(100))
    monkeypatch.setitem(harness.CLOCKS, "wall", lambda: float(next(clock)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n2\n1\n1\n"))  # without another line the process ends
    reports = io.StringIO()
    meter = Meter(2, "wall", reports)
    for _ in range(7):
        meter.done(Work(3, 50, 1e9))
    ready, *found = [json.loads(line) for line in reports.getvalue().splitlines()]
    assert ready == {"ready": True}
    assert [(each["windows"], each["tokens"], each["seconds"]) for each in found] == [
        (6, 100, 2.0),
        (6, 100, 2.0),
        (3, 50, 1.0),
    ]


@pytest.mark.parametrize(("task", "mean", "longest"), [(training.QA, 170.8, 384), (training.TC, 31.3, 66)])
def test_lengths(task: str, mean: float, longest: int) -> None:
    lengths = training.LENGTHS[task]
    assert len(lengths) == 400 and lengths == sorted(lengths) and max(lengths) == longest <= training.LONGEST[task]
    assert sum(lengths) / 400 == pytest.approx(mean, abs=0.1)
    assert training.WINDOWS % 400 == 0


def in_this_process(module: str, task: str, **given: Any) -> None:
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    importlib.import_module(f"finetune.{module}").main(["--task", task, *words])


@pytest.mark.slow
@pytest.mark.parametrize("task", [training.QA, training.TC])
def test_windows_are_as_long_as_asked(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SHAPE", {**training.SHAPE, "hidden_size": 12, "num_hidden_layers": 1})
    monkeypatch.setattr(training, "WINDOWS", 2 * len(training.LENGTHS[task]))
    monkeypatch.setattr(training, "finetune", in_this_process)
    training.prepare(task, tmp_path)
    windows = load_from_disk(tmp_path / "data" / "train" / "windows")
    repeated = training.WINDOWS // len(training.LENGTHS[task])
    assert sorted(map(len, windows["input_ids"])) == sorted(training.LENGTHS[task] * repeated)


def test_stock_recipes_do_the_same_work(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same windows, their answers at the same tokens, and of the same logits the same answers."""
    monkeypatch.setattr(stock, "LENGTH", 96)
    monkeypatch.setattr(stock, "STRIDE", 24)
    monkeypatch.setitem(reading.ROWS, "decoding", 40)
    monkeypatch.setattr(reading, "ours", reading.ours.__wrapped__)
    (tmp_path / "stock").mkdir()
    (tmp_path / "hub").symlink_to(prepared / "model" / "model")
    (tmp_path / "data").symlink_to(prepared / "data")
    rows, tokenizer = reading.given(tmp_path, 40)
    task, state = reading.ours()
    columns = task.data.encode(rows, tokenizer, state)
    labels, _ = task.data.label(rows, columns, state)
    _, windows = reading.mapped(rows, tokenizer, str(tmp_path), pad=False)
    assert len(windows) > len(rows) and list(windows["input_ids"]) == columns["input_ids"]
    for name in ("start_positions", "end_positions"):
        assert list(windows[name]) == labels[name]
    assert reading.answers_of_stock(tmp_path)() == reading.answers_of_ours(tmp_path)()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_a_run(case: str, tmp_path: Path) -> None:
    words = [case, "--rounds", "1", "--seconds", "0", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.speed", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["cases"][case]["ways"]
    assert found.keys() == {name for name, way in CASES[case].ways.items() if way.here()}
    assert all(of["windows_per_second"] > 0 for name, of in found.items() if not name.startswith("peak"))
    assert (tmp_path / "speed.png").stat().st_size > 0 and case in (tmp_path / "table.md").read_text()
