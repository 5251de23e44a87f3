"""Where the threads of this process and its workers are, in the log, before a hung run ends."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from finetune.core import timing
from finetune.core.launch import rank, world_size

STDERR = 2  # the file descriptor: whatever has replaced sys.stderr, and though the interpreter is held
ASK = signal.SIGUSR1  # shows the stacks of a worker


def answer() -> None:
    """Let this worker show its stacks when it is asked, in C: its interpreter may be held."""
    faulthandler.register(ASK, file=STDERR, all_threads=True, chain=False)


def show() -> None:
    """Show the stacks of all threads of this process, and of its workers."""
    print(f"stacks of process {rank()} of {world_size()}, the newest call first:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(STDERR, all_threads=True)
    for worker in multiprocessing.active_children():
        if worker.pid:
            print(f"stacks of its worker {worker.name}:", file=sys.stderr, flush=True)
            os.kill(worker.pid, ASK)
            time.sleep(timing.WORKER_STACK)


def end_workers() -> None:
    """End the workers of this process: one that blocks would outlive it, and keep its log open."""
    for worker in multiprocessing.active_children():
        worker.kill()


def in_time(do: Callable[[], None], seconds: float) -> None:
    """Do something that may block for ever, as writing a log on a stalled mount does, and wait so long for it."""
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)


def end_if_held(seconds: float) -> None:
    """End this process, with its stacks in the log, unless that is put off again in time.

    A thread of C does that: where code holds the interpreter, no thread of Python gets to run.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)


def never_mind() -> None:
    """Put off for good what `end_if_held` has announced."""
    faulthandler.cancel_dump_traceback_later()
