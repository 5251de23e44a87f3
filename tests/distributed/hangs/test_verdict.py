"""Who is behind, and who is slow, by what processes have told."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from finetune.distributed.hangs import pulse
from finetune.distributed.hangs.pulse import State
from finetune.distributed.hangs.slow import STEPS, Paces
from finetune.distributed.hangs.verdict import Hang, Seen, hang, hang_of_main

TICK = 10.0
AT_STEP = State(0, "step", 12, 90, 60, False, 100.0, 12, 6.0, 1.0)


def after(seconds: float, *states: State, silent: tuple[int, ...] = ()) -> dict[int, Seen]:
    """What is seen of processes without a mark in this time, some of which don't answer."""
    seen = {rank: Seen(replace(state, rank=rank)) for rank, state in enumerate(states)}
    for _ in range(int(seconds / TICK)):
        for rank, process in seen.items():
            process.pass_time(TICK, None if rank in silent else process.state)
    return seen


def test_nothing_hangs_before_its_time_or_while_one_moves() -> None:
    assert hang(after(0, AT_STEP, AT_STEP)) is None
    assert hang(after(100, AT_STEP, AT_STEP, silent=(1,))) is None
    seen = after(500, AT_STEP, AT_STEP, silent=(1,))
    seen[0].pass_time(TICK, replace(AT_STEP, marks=91))
    assert hang(seen) is None
    saving = replace(AT_STEP, phase="save", limit=200.0)
    assert hang(after(150, saving, AT_STEP)) is None  # the longest limit counts


@pytest.mark.parametrize(
    ("states", "silent", "named"),
    [
        ((AT_STEP, AT_STEP), (1,), (1,)),
        ((AT_STEP, replace(AT_STEP, phase="start", limit=10_000.0)), (1,), (1,)),  # stopped in its first step
        ((AT_STEP, replace(AT_STEP, waiting=True)), (1,), (1,)),
        ((replace(AT_STEP, places=59), AT_STEP, AT_STEP), (), (0,)),
        ((AT_STEP, replace(AT_STEP, waiting=True)), (), (0,)),
        ((AT_STEP, AT_STEP, replace(AT_STEP, places=61)), (), (0, 1)),
        ((replace(AT_STEP, waiting=True), replace(AT_STEP, waiting=True)), (), (0, 1)),
    ],
)
def test_who_is_behind(states: tuple[State, ...], silent: tuple[int, ...], named: tuple[int, ...]) -> None:
    found = hang(after(110, *states, silent=silent))
    assert found and found.ranks == named and found.silent == bool(silent)
    does = "no sign of life for 110 s, while others wait" if silent else "no progress for 110 s,"
    assert str(found).startswith(f"{does} in step 13")


def test_all_that_are_behind_are_named() -> None:
    assert str(Hang((1, 3, 4), 1800.0, False, "step 13")) == (
        "no progress for 30 minutes, in step 13; process 3, 4 is no further"
    )


def test_the_main_process_decides_while_it_answers() -> None:
    seen = after(500, AT_STEP, AT_STEP)
    assert hang_of_main(seen[0], seen[1]) is None
    seen = after(110, AT_STEP, AT_STEP, silent=(0,))
    assert (found := hang_of_main(seen[0], seen[1])) and found.ranks == (0,)
    seen[1].pass_time(TICK, replace(AT_STEP, marks=91))
    assert hang_of_main(seen[0], seen[1]) is None  # it moves without it


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])
    yield now
    pulse.begin(0)


def test_limits_follow_what_was_seen(clock: list[float]) -> None:
    pulse.begin(1)
    assert pulse.state().limit == 4 * 60
    for step in range(1, 8):
        clock[0] += 100 if step == 4 else 10
        pulse.stepped(step, last=False)
    assert pulse.state().median == 10 and pulse.state().limit == 20 * 10  # of one long step nothing follows
    with pulse.within("evaluation"):
        assert pulse.state().limit == 20 * 10
        clock[0] += 90
        pulse.mark()
        assert pulse.state().limit == 3 * 90
    with pulse.waiting():
        assert pulse.state().waiting and pulse.state().phase == "step"
    pulse.stepped(8, last=True)
    assert pulse.state().phase == "end" and not pulse.state().waiting
    pulse.begin(0)
    assert pulse.state().limit == math.inf and State.read(pulse.state().written()) == pulse.state()


@pytest.mark.parametrize("told", [b"done", b"[" * 100_000, b"{}", json.dumps({"rank": 0, "phase": "lunch"}).encode()])
def test_what_is_no_state(told: bytes) -> None:
    assert State.read(told) is None


def test_a_slow_process_is_named_once_and_again_if_it_changes() -> None:
    paces, said, states = Paces(), [], {rank: replace(AT_STEP, rank=rank, steps=0, own=0.0) for rank in range(3)}
    for own in [
        (0.1, 0.11, 0.1),
        (0.1, 0.3, 0.1),
        *[(0.1, 0.5, 0.1)] * 4,
        *[(0.1, 0.9, 0.1)] * 2,
        *[(0.1, 0.1, 0.1)] * 2,
    ]:
        said.append(paces.news(states))
        for rank, state in states.items():
            states[rank] = replace(state, steps=state.steps + STEPS, own=state.own + STEPS * own[rank])
    said.append(paces.news(states))
    lines = [line for some in said for line in some]
    assert [line.split(",")[0] for line in lines] == [
        "process 1 is slow: 0.5 s of own work a step",
        "process 1 is slow: 0.9 s of own work a step",
        "process 1 is no longer slower than the others",
    ]
    assert "5.0 times that of the others" in lines[0]


def test_what_costs_no_time_is_not_named() -> None:
    """Twice the time for its batches is nothing in a step of a second."""
    paces, states = Paces(), {rank: replace(AT_STEP, rank=rank, steps=0, own=0.0) for rank in range(2)}
    for _ in range(5):
        assert paces.news(states) == []
        states = {r: replace(s, steps=s.steps + STEPS, own=s.own + STEPS * 0.05 * (r + 1)) for r, s in states.items()}
