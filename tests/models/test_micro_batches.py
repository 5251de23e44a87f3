"""Requests of many threads: each has its own answers, and those that wait are computed together."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finetune.models.micro_batches import MicroBatches

SECONDS = 60  # that a test waits for what has to come


class Gate:
    """A computation that waits until it is let through, and says who is in it."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.calls: list[list[str]] = []

    def __call__(self, records: Sequence[dict[str, Any]], how: str) -> list[str]:
        self.calls.append([record["name"] for record in records])
        self.entered.release()
        assert self.open.wait(SECONDS)
        if any(record["name"] == "broken" for record in records):
            raise ValueError("broken")
        return [f"{record['name']} {how}" for record in records]


def names(*of: str) -> list[dict[str, str]]:
    return [{"name": name} for name in of]


def waiting(batches: MicroBatches[str, str], count: int) -> None:
    """Return once so many requests wait. One that comes tells nobody, so that it is looked for."""
    until = time.monotonic() + SECONDS
    while len(batches.waiting) != count:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_those_that_wait_are_computed_together() -> None:
    """The oldest first, while there is room; others with another parameter, or too large, come later."""
    gate = Gate()
    batches = MicroBatches(gate, lanes=1, limit=10)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batches, names("first"), "a", 1)
        assert gate.entered.acquire(timeout=SECONDS)
        later = []
        for i, (how, size) in enumerate((("a", 3), ("a", 3), ("b", 1), ("a", 8), ("a", 4))):
            later.append(pool.submit(batches, names(f"{i}", f"{i}'"), how, size))
            waiting(batches, i + 1)
        gate.open.set()
        assert first.result(SECONDS) == ["first a"]
        found = [one.result(SECONDS) for one in later]
    assert found == [[f"{i} {how}", f"{i}' {how}"] for i, how in enumerate("aabaa")]
    assert gate.calls[0] == ["first"] and len(gate.calls) == 4
    assert sorted(sorted(call) for call in gate.calls[1:]) == [
        ["0", "0'", "1", "1'", "4", "4'"],
        ["2", "2'"],
        ["3", "3'"],
    ]


def test_a_free_lane_waits_for_nobody() -> None:
    gate = Gate()
    batches = MicroBatches(gate, lanes=2, limit=10)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(batches, names(name), "a", 1) for name in ("one", "two")]
        for _ in asked:  # both are in it at the same time
            assert gate.entered.acquire(timeout=SECONDS)
        third = pool.submit(batches, names("three"), "a", 1)
        waiting(batches, 1)
        assert len(gate.calls) == 2
        gate.open.set()
        assert [one.result(SECONDS) for one in (*asked, third)] == [["one a"], ["two a"], ["three a"]]


def test_a_request_that_fails_takes_no_other_along() -> None:
    gate = Gate()
    batches = MicroBatches(gate, lanes=1, limit=10)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batches, names("first"), "a", 1)
        assert gate.entered.acquire(timeout=SECONDS)
        others = [pool.submit(batches, names(name), "a", 1) for name in ("good", "broken", "better")]
        waiting(batches, 3)
        gate.open.set()
        assert first.result(SECONDS) == ["first a"]
        assert others[0].result(SECONDS) == ["good a"] and others[2].result(SECONDS) == ["better a"]
        with pytest.raises(ValueError, match="broken"):
            others[1].result(SECONDS)
    assert batches.waiting == [] and batches.free_lanes == 1


@pytest.mark.parametrize("lanes", [1, 3])
def test_each_of_many_has_its_own_answers(lanes: int) -> None:
    chance, running, most, lock = random.Random(lanes), [0], [0], threading.Lock()
    limit = 12

    def compute(records: Sequence[dict[str, Any]], how: str) -> list[str]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        asked = {record["request"] for record in records}
        assert {record["how"] for record in records} <= {how}
        assert len(asked) <= 1 or len(records) <= limit
        threading.Event().wait(0.002)
        with lock:
            running[0] -= 1
        return [f"{record['request']} {record['i']}" for record in records]

    batches: MicroBatches[str, str] = MicroBatches(compute, lanes, limit)
    plans = [(request, chance.choice("ab"), chance.randrange(0, 16)) for request in range(200)]

    def ask(plan: tuple[int, str, int]) -> Sequence[str]:
        request, how, count = plan
        return batches([{"request": request, "i": i, "how": how} for i in range(count)], how, count)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, plans))
    assert answers == [[f"{request} {i}" for i in range(count)] for request, _, count in plans]
    assert most[0] <= lanes and batches.free_lanes == lanes and batches.waiting == []
