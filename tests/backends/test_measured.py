"""How backends are timed: in turns, with the same threads, by medians; and their memory, in a process of its own."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.backends import memory
from finetune.backends.measured import TURNS, speeds, threads_of
from finetune.backends.trial import compared, timed
from finetune.data.batches import Batch, spread
from tests.conftest import build_tiny_model

WINDOWS = [{"input_ids": torch.ones(1, length, dtype=torch.long)} for length in (3, 5)]
BATCH = {"input_ids": torch.ones(4, 5, dtype=torch.long)}


class Sleeper:
    """Takes so long for a batch, but for its first turn, and writes down whose turn it is."""

    def __init__(self, name: str, seconds: float, turns: list[str]) -> None:
        self.name, self.seconds, self.turns = name, seconds, turns

    def answer(self, _batch: Batch) -> None:
        self.turns.append(self.name)
        time.sleep(10 * self.seconds if len(self.turns) < 7 else self.seconds)


def test_backends_take_turns() -> None:
    """The warm-up doesn't count, and the time is shared."""
    turns: list[str] = []
    sleepers = {name: Sleeper(name, seconds, turns) for name, seconds in (("fast", 0.002), ("slow", 0.01))}
    found = speeds({name: one.answer for name, one in sleepers.items()}, WINDOWS, BATCH, 0.0)
    assert turns == [name for _ in range(TURNS + 1) for name in ("fast", "slow") for _ in range(3)]
    assert 2 <= found["fast"].p50_ms < 6 and 10 <= found["slow"].p50_ms < 20
    assert 4 / 0.02 < found["slow"].windows_per_second <= 4 / 0.01 < found["fast"].windows_per_second <= 4 / 0.002


def test_turns_go_on_for_the_time_that_is_given() -> None:
    turns: list[str] = []
    started = time.perf_counter()
    speeds({"one": Sleeper("one", 0.001, turns).answer}, WINDOWS, BATCH, 0.5)
    assert 0.5 <= time.perf_counter() - started < 2 and len(turns) > 3 * (TURNS + 1)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads_of(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_windows_of_all_lengths() -> None:
    windows: list[dict[str, Any]] = [
        {"input_ids": [7] * length, "attention_mask": [1] * length} for length in range(100, 0, -1)
    ]
    padding = {"input_ids": 9}
    (alone, together), pairs = timed(windows, padding, 4), compared(windows, padding)
    lengths = [batch["input_ids"].shape for batch in alone]
    assert lengths[0] == (1, 1) and lengths[-1][1] > 90 and len(lengths) == 16
    assert together["input_ids"].shape == (4, 52)  # around the median
    assert all(batch["input_ids"].shape[0] == 2 for batch in pairs)
    assert pairs[0]["input_ids"][0, 1:].unique().tolist() == [9]  # the shortest beside the longest
    assert pairs[0]["attention_mask"].sum(1).tolist() == [1, pairs[0]["input_ids"].shape[1]]


def test_few_windows_fill_a_batch() -> None:
    windows = [{"input_ids": [7, 7], "attention_mask": [1, 1]}]
    _, together = timed(windows, {}, 3)
    assert together["input_ids"].shape == (3, 2) and compared(windows, {})[0]["input_ids"].shape == (2, 2)


@pytest.mark.parametrize(("count", "most", "found"), [(3, 5, [0, 1, 2]), (10, 3, [0, 3, 6]), (5, 5, [0, 1, 2, 3, 4])])
def test_spread(count: int, most: int, found: list[int]) -> None:
    assert spread(range(count), most) == found


@pytest.mark.slow
@pytest.mark.thorough
def test_the_memory_of_a_process_that_has_nothing_else(tmp_path: Path) -> None:
    """A model with 100 MB more of weights takes about that much more."""
    from transformers import BertConfig, BertForQuestionAnswering

    peaks = []
    for name, width in (("small", 64), ("large", 100_000_000 // (4 * 2 * 2 * 32))):  # bytes, layers, matrices, inputs
        (tmp_path / name).mkdir()
        model = build_tiny_model(tmp_path / name)
        config = BertConfig.from_pretrained(model, intermediate_size=width)
        BertForQuestionAnswering(config).save_pretrained(model)
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        peaks.append(memory.peak_mb("PyTorch FP32", model, "question_answering", 1, 40, inputs))
    assert peaks[0] is not None and peaks[1] is not None
    assert 90 < peaks[1] - peaks[0] < 330


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no_such"):
        memory.peak_mb("PyTorch FP32", tmp_path / "no_such", "question_answering", 1, 40, ("input_ids",))
