"""The thread in each process that tells the others of its progress, and ends a run that makes none.

The main process hears of all, and decides which one is behind. If it gives no sign of life, each of the others ends.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune.core import timing
from finetune.core.console import say
from finetune.core.launch import is_main_process, rank, world_size
from finetune.distributed.hangs import pulse, stacks
from finetune.distributed.hangs.pulse import State
from finetune.distributed.hangs.slow import Paces
from finetune.distributed.hangs.verdict import Hang, Seen, hang, hang_of_main

Told = dict[int, State]  # what processes have told since the last look, by rank


@contextmanager
def watched(minutes: float, told: Told, tell: Callable[[State], None], end: Callable[[Hang], None]) -> Iterator[None]:
    """Watch, within, this process and the others; `tell` sends a state to those that this one is connected with.

    `end` ends the run. With 0 minutes none is ended, but slow processes are still named.
    """
    pulse.begin(minutes)
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(over, told, tell, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timing.LEAVE)  # it may be about to tell the others something
        stacks.never_mind()


def _watch(over: threading.Event, told: Told, tell: Callable[[State], None], end: Callable[[Hang], None]) -> None:
    longest = pulse.longest_limit()
    every = min(timing.PULSE, longest / timing.PULSES)
    seen: dict[int, Seen] = {}
    paces = Paces()
    before = time.monotonic()
    while not over.wait(every):
        if longest < math.inf:
            stacks.end_if_held(longest + every)
        now = time.monotonic()
        passed, before = min(now - before, 2 * every), now  # a pause of this process counts for nobody
        own = pulse.state()
        tell(own)
        states = {**{other: told.pop(other) for other in list(told)}, rank(): own}
        for other, state in states.items():
            seen.setdefault(other, Seen(state))
        for other, process in seen.items():
            process.pass_time(passed, states.get(other))
        if found := _found(seen):
            stacks.never_mind()  # what follows ends this process
            end(found)
            return
        if is_main_process() and len(seen) == world_size() > 1:
            for line in paces.news({r: process.state for r, process in seen.items()}):
                say(f"note: {line}")


def _found(seen: dict[int, Seen]) -> Hang | None:
    own = seen[rank()]
    if is_main_process():
        return hang(seen)
    if 0 in seen:
        return hang_of_main(seen[0], own)
    return None if own.state.waiting else hang({rank(): own})  # the main process can't be heard, see failure.py
