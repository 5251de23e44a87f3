"""Which processes are slower than the others: each step waits for the slowest."""

import statistics
from collections.abc import Mapping

from finetune.distributed.hangs.pulse import State

STEPS = 20  # that are compared at a time
RATIO = 1.5  # to the others, from which on a process is slow
SHARE = 0.1  # of a step that is lost with it
CHANGED = 1.5  # times the ratio that was named


class Paces:
    """The own work of each process between two comparisons, and what the user was told."""

    def __init__(self) -> None:
        self.before: Mapping[int, State] = {}
        self.suspected: set[int] = set()
        self.named: dict[int, float] = {}  # ratios, by rank

    def news(self, now: Mapping[int, State]) -> list[str]:
        """Return what is new of slow processes, each a line to follow the name of it.

        One comparison is not enough: what is slow twice is named, and once more if it changes much.
        """
        if set(self.before) != set(now):
            self.before = dict(now)
        if min(state.steps - self.before[rank].steps for rank, state in now.items()) < STEPS:
            return []
        own = {
            rank: (state.own - self.before[rank].own) / (state.steps - self.before[rank].steps)
            for rank, state in now.items()
        }
        self.before = dict(now)
        step = statistics.median(state.median for state in now.values())
        found = {rank: ratio for rank, ratio in ratios(own).items() if ratio >= RATIO}
        found = {rank: ratio for rank, ratio in found.items() if own[rank] * (1 - 1 / ratio) >= SHARE * step}
        lines = {rank: self._line(rank, ratio, own[rank]) for rank, ratio in found.items() if rank in self.suspected}
        over = [rank for rank in self.named if rank not in found and rank not in self.suspected]
        self.suspected = set(found)
        for rank in over:
            del self.named[rank]
        return [f"process {rank}{line}" for rank, line in lines.items() if line] + [
            f"process {rank} is no longer slower than the others" for rank in over
        ]

    def _line(self, rank: int, ratio: float, own: float) -> str:
        was = self.named.get(rank)
        if was and max(ratio / was, was / ratio) < CHANGED:
            return ""
        self.named[rank] = ratio
        return f" is slow: {own:.3g} s of own work a step, {ratio:.1f} times that of the others, which wait for it"


def ratios(own: Mapping[int, float]) -> dict[int, float]:
    """Return how many times the median of all others each process takes."""
    found = {}
    for rank, seconds in own.items():
        others = statistics.median(value for other, value in own.items() if other != rank)
        found[rank] = seconds / max(others, 1e-9)
    return found
