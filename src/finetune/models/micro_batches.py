"""Micro-batches: requests that come while others are computed wait, and are then computed together.

No request waits for company: one that finds a free lane is computed at once, alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition
from typing import Generic, TypeVar

from finetune.core.types import Json

H = TypeVar("H")  # how a request is to be answered
A = TypeVar("A")  # the answer to a record
BROKEN_OFF = RuntimeError("the computation was broken off")


@dataclass(eq=False)
class _Request(Generic[H, A]):
    records: Sequence[Json]
    how: H
    size: int
    answers: Sequence[A] = ()
    error: Exception | None = BROKEN_OFF
    ended: bool = False


class MicroBatches(Generic[H, A]):
    """A function from (records, how) to an answer for each record, which many threads may call at once.

    `compute` is that function for one thread. `lanes` are the computations that run at the same time. Requests that
    are to be answered in the same way are computed together while their sizes sum up to `limit` at most, the oldest
    first.
    """

    def __init__(self, compute: Callable[[Sequence[Json], H], Sequence[A]], lanes: int, limit: int) -> None:
        self.compute, self.limit = compute, limit
        self.free_lanes = lanes
        self.waiting: list[_Request[H, A]] = []
        self.changed = Condition()

    def __call__(self, records: Sequence[Json], how: H, size: int) -> Sequence[A]:
        """Return the answers to the records of a request of this size. Raises: what computing it alone does."""
        mine = _Request[H, A](records, how, size)
        with self.changed:
            self.waiting.append(mine)
            self.changed.wait_for(lambda: mine.ended or (self.free_lanes and mine in self.waiting))
            together = None if mine.ended else self._take(mine)
        if together:
            self._answer(together)
        if mine.error:
            raise mine.error
        return mine.answers

    def _take(self, mine: _Request[H, A]) -> list[_Request[H, A]]:
        """Take a lane, and for it this request and those that may come along from the ones that wait."""
        self.free_lanes -= 1
        taken, room = [mine], self.limit - mine.size
        for other in self.waiting:
            if other is not mine and other.how == mine.how and other.size <= room:
                taken.append(other)
                room -= other.size
        self.waiting = [one for one in self.waiting if one not in taken]
        return taken

    def _answer(self, together: Sequence[_Request[H, A]]) -> None:
        """Compute the requests, and let those go who wait for them, or for the lane."""
        try:
            self._computed(together)
        finally:
            with self.changed:
                self.free_lanes += 1
                for one in together:
                    one.ended = True
                self.changed.notify_all()

    def _computed(self, together: Sequence[_Request[H, A]]) -> None:
        """Put answers, or an error, into each; a request that can't be computed takes no other along."""
        try:
            answers = self.compute([record for one in together for record in one.records], together[0].how)
        except Exception as error:
            if len(together) == 1:
                together[0].error = error
                return
            for one in together:
                self._computed([one])
            return
        first = 0
        for one in together:
            one.answers, one.error = answers[first : first + len(one.records)], None
            first += len(one.records)
