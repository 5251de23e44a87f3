"""Whether a run hangs, and which of its processes is behind."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune.distributed.hangs.pulse import State


class Seen:
    """What one process knows of another, or of itself. Times are counted by `pass_time`, not by a clock: while the
    counting process is paused itself, it takes nobody for hung."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.quiet = 0.0  # seconds without a mark
        self.silent = 0.0  # seconds without a word

    def pass_time(self, seconds: float, told: State | None) -> None:
        """Count the time since the last look, in which it has told its state, or nothing."""
        self.quiet += seconds
        self.silent += seconds
        if told:
            self.silent = 0.0
            if told.marks != self.state.marks:
                self.quiet = 0.0
            self.state = told


@dataclass(frozen=True)
class Hang:
    """A run that doesn't move, and the processes that are behind."""

    ranks: tuple[int, ...]
    seconds: float
    silent: bool
    where: str

    def __str__(self) -> str:
        """Return what the first of the processes does, or doesn't."""
        others = f"; process {', '.join(map(str, self.ranks[1:]))} is no further" if self.ranks[1:] else ""
        if self.silent:
            return f"no sign of life for {span(self.seconds)}, while others wait in {self.where}{others}"
        return f"no progress for {span(self.seconds)}, in {self.where}{others}"


def hang(seen: Mapping[int, Seen]) -> Hang | None:
    """Return the hang of a run whose processes are seen so; None while any of them moves, or may be so long.

    Of those that answer the longest limit counts. What one that is silent has said last may be of another phase, which
    it has left together with the others.
    """
    quiet = min(process.quiet for process in seen.values())
    silent = [rank for rank, process in seen.items() if process.silent > quiet / 2]
    if quiet <= max(process.state.limit for rank, process in seen.items() if rank not in silent):
        return None
    if silent:  # all others wait for it in a collective, whatever they say
        where = next(process.state.where() for rank, process in seen.items() if rank not in silent)
        return Hang(tuple(silent), seen[silent[0]].silent, True, where)
    working = {rank: process for rank, process in seen.items() if not process.state.waiting} or seen
    fewest = min(process.state.places for process in working.values())
    behind = [rank for rank, process in working.items() if process.state.places == fewest]
    return Hang(tuple(behind), seen[behind[0]].quiet, False, seen[behind[0]].state.where())


def hang_of_main(main: Seen, own: Seen) -> Hang | None:
    """Return the hang of the main process, as another one sees it: it decides while it gives signs of life, and here
    nothing moves either."""
    if min(main.silent, own.quiet) <= own.state.limit:
        return None
    return Hang((0,), main.silent, True, own.state.where())


def span(seconds: float) -> str:
    """Return a time as text."""
    return f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} minutes"
