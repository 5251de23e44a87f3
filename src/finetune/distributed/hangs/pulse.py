"""What this process says of its own progress. No torch here: whoever works marks it, at the cost of an addition.

A mark says that something was done. A place that all processes reach in the same order says besides who is behind.
"""

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from finetune.core.launch import rank

Phase = Literal["start", "step", "evaluation", "save", "end"]
# How many times hang_timeout each phase may go on without a mark: models are loaded and compiled at the start, decoded
# and scored after an evaluation, and converted and proved at the end, all of them without a mark in between.
FACTORS: dict[str, float] = {"start": 4, "step": 1, "evaluation": 2, "save": 2, "end": 4}
STEPS_SEEN = 50  # whose median counts
OF_MEDIAN = 20  # times the median step that a step may take, however small hang_timeout is
OF_LONGEST = 3  # times the longest time without a mark that was seen in another phase


class _Pulse:
    """The progress of this process, which has one; `begin` makes it that of a new run."""

    timeout = math.inf  # seconds
    phase: Phase = "start"
    step = 0  # of the run, the last that was made
    marks = places = waits = 0
    marked = stepped = 0.0  # monotonic times
    durations: ClassVar[deque[float]] = deque(maxlen=STEPS_SEEN)
    longest: ClassVar[dict[str, float]] = {}
    steps = 0  # that this process has made
    own = 0.0  # seconds of its own work in them


@dataclass(frozen=True)
class State:
    """The progress of a process, as it tells the others."""

    rank: int
    phase: str
    step: int
    marks: int
    places: int
    waiting: bool
    limit: float  # seconds that it may be without a mark
    steps: int
    own: float
    median: float  # seconds of a step

    @classmethod
    def read(cls, message: bytes) -> "State | None":
        """Return what a process tells of its progress; None if it tells something else."""
        try:
            match json.loads(message):
                case {
                    "rank": int(rank),
                    "phase": str(phase),
                    "step": int(step),
                    "marks": int(marks),
                    "places": int(places),
                    "waiting": bool(waiting),
                    "limit": float(limit),
                    "steps": int(steps),
                    "own": float(own),
                    "median": float(median),
                } if phase in FACTORS:
                    return cls(rank, phase, step, marks, places, waiting, limit, steps, own, median)
        except (ValueError, RecursionError):
            pass
        return None

    def written(self) -> bytes:
        """Return the message that `read` reads."""
        return json.dumps(asdict(self)).encode()

    def where(self) -> str:
        """Return where in the run it is."""
        after = f" after step {self.step}" if self.step else ""
        names = {"start": "the start of the run", "step": f"step {self.step + 1}", "end": f"the end of the run,{after}"}
        return names.get(self.phase, f"the {self.phase}{after}").removesuffix(",")


def begin(minutes: float) -> None:
    """Begin a run whose steps may be that long without a mark; 0 means any time."""
    _Pulse.timeout = minutes * 60 or math.inf
    _Pulse.phase = "start"
    _Pulse.step = _Pulse.marks = _Pulse.places = _Pulse.waits = _Pulse.steps = 0
    _Pulse.own = 0.0
    _Pulse.durations.clear()
    _Pulse.longest.clear()
    _Pulse.marked = _Pulse.stepped = time.monotonic()


def longest_limit() -> float:
    """Return the seconds that the longest phase may be without a mark."""
    return _Pulse.timeout * max(FACTORS.values())


def mark() -> None:
    """Say that this process moves."""
    now = time.monotonic()
    _Pulse.longest[_Pulse.phase] = max(_Pulse.longest.get(_Pulse.phase, 0.0), now - _Pulse.marked)
    _Pulse.marks += 1
    _Pulse.marked = now


def reach(phase: Phase | None = None) -> None:
    """Say that this process is at the next of the places that all processes reach, at which a phase may begin."""
    mark()
    _Pulse.places += 1
    if phase:
        _Pulse.phase = phase


@contextmanager
def within(phase: Phase) -> Iterator[None]:
    """Be in a phase, and then in the one before."""
    before = _Pulse.phase
    reach(phase)
    try:
        yield
    finally:
        reach(before)


@contextmanager
def waiting() -> Iterator[None]:
    """Say, within, that this process only waits for others: it isn't the one that is behind."""
    _Pulse.waits += 1
    try:
        yield
    finally:
        _Pulse.waits -= 1


def stepped(step: int, last: bool) -> None:
    """Say that this step was made, and whether it was the last one."""
    now = time.monotonic()
    if _Pulse.steps:  # the first one of a process compiles, fills caches and meets the others
        _Pulse.durations.append(now - _Pulse.stepped)
    _Pulse.stepped = now
    _Pulse.steps += 1
    _Pulse.step = step
    reach("end" if last else "step")


def worked(seconds: float) -> None:
    """Count time in which this process worked on its share of a step, without waiting for another."""
    _Pulse.own += seconds


def state() -> State:
    """Return the progress of this process."""
    median = statistics.median(_Pulse.durations) if _Pulse.durations else 0.0
    seen = 0.0 if _Pulse.phase == "step" else OF_LONGEST * _Pulse.longest.get(_Pulse.phase, 0.0)
    limit = max(_Pulse.timeout * FACTORS[_Pulse.phase], OF_MEDIAN * median, seen)
    return State(
        rank(),
        _Pulse.phase,
        _Pulse.step,
        _Pulse.marks,
        _Pulse.places,
        _Pulse.waits > 0,
        limit,
        _Pulse.steps,
        _Pulse.own,
        median,
    )
