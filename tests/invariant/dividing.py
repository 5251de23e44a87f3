"""One run with whole steps, and one whose steps are divided into batches, and over processes."""

import functools
import json
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
    [
        pytest.param("alone", 2, 4, marks=pytest.mark.thorough),
        pytest.param("azure", 2, 2, marks=pytest.mark.distributed),
    ],
)


Whole = Callable[..., Path]


def trained_once(words: Callable[..., list[str]], made: Callable[[str], Path]) -> Whole:
    """A function that trains with these values and returns the folder, which is made once for all that ask for it.

    `words(output, **given)` is the command of a run, `made(name)` a new folder.
    """

    @functools.cache
    def trained(given: str) -> Path:
        folder = made("whole")
        run.main(words(folder, **json.loads(given)))
        return folder

    return lambda **given: trained(json.dumps(given, sort_keys=True))


def whole_and_divided(
    forks: Forks, whole: Path, words: Callable[..., list[str]], folder: Path, how: str, batch: int, accumulation: int
) -> tuple[Trajectory, Trajectory]:
    """Divide the steps of the run `whole`, of 8 windows; `words(output, batch, **given)` is the command of a run."""
    given: Any = {"gradient_accumulation_steps": accumulation}
    divided_words = words(folder / "divided", batch, **given)
    if how == "alone":
        run.main(divided_words)
    else:
        launched = launch(folder, divided_words, how, forks=forks)
        assert set(launched.codes()) == {0}, launched.said()
    return trajectory(whole), trajectory(folder / "divided")
