"""One run with whole steps, and one whose steps are divided into batches, and over processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import run
from tests.forking import Forks
from tests.invariant.test_loss import Trajectory, trajectory
from tests.launching import launch

divided = pytest.mark.parametrize(
    ("how", "batch", "accumulation"),
    [("alone", 2, 4), pytest.param("azure", 2, 2, marks=pytest.mark.distributed)],
)


def whole_and_divided(
    forks: Forks, words: Callable[..., list[str]], folder: Path, how: str, batch: int, accumulation: int
) -> tuple[Trajectory, Trajectory]:
    """Train both, 8 windows a step; `words(output, batch, **given)` is the command of a run."""
    run.main(words(folder / "whole"))
    given: Any = {"gradient_accumulation_steps": accumulation}
    divided_words = words(folder / "divided", batch, **given)
    if how == "alone":
        run.main(divided_words)
    else:
        launched = launch(folder, divided_words, how, forks=forks)
        assert set(launched.codes()) == {0}, launched.said()
    return trajectory(folder / "whole"), trajectory(folder / "divided")
