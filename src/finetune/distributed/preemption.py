"""The handling of SIGTERM, with which platforms announce that a machine will be taken away. No torch here."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune.core.errors import Fault, StoppedError
from finetune.distributed.hangs import stacks

AGAIN = "the same command again, which goes on from the newest checkpoint"


class _Sigterm:
    """The signals that this process has received; like a handler, it belongs to the whole process."""

    received = False
    training = False


@contextmanager
def listening() -> Iterator[None]:
    """Let SIGTERM end the process, within, with the exit code of StoppedError: in training, after a save."""
    owner = os.getpid()
    _Sigterm.received = False

    def handle(number: int, _: object) -> None:
        if os.getpid() != owner:  # another process that was forked off
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        first, _Sigterm.received = not _Sigterm.received, True
        if first and not _Sigterm.training:
            raise StoppedError(Fault("stopped by SIGTERM outside of training", fix=AGAIN))

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is handle:  # failure.py ignores it once an error is known
            signal.signal(signal.SIGTERM, before)


def prepare_worker(begin: Callable[[int], None] | None, worker: int) -> None:
    """Let a worker of a DataLoader ignore SIGTERM, which launchers send to whole groups of processes: a step that has
    lost its worker can't be saved, and workers end with the process that they work for. If asked, it shows its stacks.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stacks.answer()
    if begin:
        begin(worker)


def received() -> bool:
    """Return whether this process has received SIGTERM."""
    return _Sigterm.received


@contextmanager
def noted(until: str = "after the last step") -> Iterator[None]:
    """Only note a SIGTERM within: for callbacks.StopTogether to act on, else for the end, which is `until`."""
    _Sigterm.training = True
    try:
        yield
    finally:
        _Sigterm.training = False
    if _Sigterm.received:
        raise StoppedError(Fault(f"stopped by SIGTERM {until}", fix=AGAIN))


@contextmanager
def ignored() -> Iterator[None]:
    """Ignore SIGTERM within, where this process only waits for another that is about to be done."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
