"""What the benchmark of goodput makes of the lives of a run; the whole of it in the thorough tier."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.goodput import Event, Life, summary, table
from tests.conftest import ROOT


def life(started: float, steps: range, signal: str = "", left: float = 0.0, saved: float = 0.0) -> Life:
    """One whose libraries are there after 10 s, trains after 15, and makes a step in each second from then on."""
    events = [Event("loaded", started + 10), Event("train", started + 15, steps[0] - 1)]
    events += [Event("step", started + 16 + i, step, processor=20.0 + i) for i, step in enumerate(steps)]
    if saved:
        events.append(Event("all", left - 0.25, seconds=saved, processor=saved / 2))
    return Life(started, signal, started + 15.5 + len(steps), left, [9, 9], events)


def test_what_counts_and_what_is_lost() -> None:
    """Ten steps, saved by a SIGTERM; ten more, of which a SIGKILL costs four; and two."""
    lives = [
        life(0.0, range(1, 11), "SIGTERM", left=27.0, saved=1.0),
        life(27.0, range(11, 21), "SIGKILL", left=53.0),
        life(53.0, range(17, 19), left=71.0),
    ]
    found = summary(lives)
    assert (found["steps_that_count"], found["steps_made_twice"], found["median_step"]) == (18, 4, 1.0)
    assert found["goodput"] == pytest.approx(18 / 71) and found["share_of_saves"] == pytest.approx(1 / 71)
    assert found["saves"] == {"all": {"median": 1.0, "longest": 1.0, "processor": 0.5}}
    term, kill = found["signals"]["SIGTERM"], found["signals"]["SIGKILL"]
    assert (term["save"], term["leave"], term["to the first step"], term["steps again"]) == (1.0, 0.5, 17.5, 0.0)
    assert (kill["save"], kill["leave"], kill["to the first step"], kill["steps again"]) == (0.0, 0.5, 16.5, 4.0)
    assert (kill["start"], kill["load"], kill["first step"], kill["processor"]) == (10.0, 5.0, 1.0, 20.0)
    assert "| SIGKILL | 1 | 0.5 | 0.0 | 10.0 | 5.0 | 1.0 | 20.0 | 16.5 | 4.0 |" in table(found).splitlines()


@pytest.mark.slow
@pytest.mark.thorough
def test_the_whole_of_it(tmp_path: Path) -> None:
    words = ["--seconds", "150", "--every", "6", "--save-steps", "3", "--hidden", "24", "--layers", "1"]
    command = [sys.executable, "-m", "benchmarks.goodput", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert 0 < found["goodput"] < 1 and {"weights", "optimizer", "all"} <= {*found["saves"]}
    assert found["lives"][0]["codes"] == [9, 9] and found["signals"]["SIGTERM"]["steps again"] == 0
    assert (tmp_path / "table.md").read_text() in done.stdout
