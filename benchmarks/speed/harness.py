"""Ways to do the same work, each in a process of its own, measured in turn over several rounds."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from finetune.models.memory import return_freed_memory

# What a second is. Where other programs take the cores, only the processor's time says what a way costs, and with one
# thread alone, as threads that wait for each other count too.
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": lambda: sum(os.times()[:4]),  # with those of processes that it has started
}
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Work:
    """What was done."""

    windows: int = 0
    tokens: int = 0  # without padding
    operations: float = 0.0  # floating point, of matrix multiplications, for tokens without padding

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Round:
    """What a way did in a round."""

    windows: int
    tokens: int
    operations: float
    seconds: float
    peak_memory: int  # bytes of the process, until then
    load: float  # of the machine, over a minute


class Meter:
    """In the process of a way, which calls `done` after each piece of work: takes times, reports, and waits."""

    def __init__(self, warm_up: int, clock: str, reports: IO[str]) -> None:
        self.clock = CLOCKS[clock]
        self.warm_up = warm_up  # pieces before the first round
        self.reports = reports
        self.pieces = 0
        self.work = Work()
        self.seconds = self.started = 0.0

    def done(self, work: Work) -> None:
        """Count a piece of work; at the end of a round report it, and wait for the next one."""
        self.pieces += 1
        if self.pieces < self.warm_up:
            return
        if self.pieces == self.warm_up:
            self._wait({"ready": True})
            return
        self.work += work
        passed = self.clock() - self.started
        if passed >= self.seconds:
            seen = {"seconds": passed, "peak_memory": peak_memory(), "load": os.getloadavg()[0]}
            self._wait({**asdict(self.work), **seen})

    def _wait(self, report: Mapping[str, object]) -> None:
        return_freed_memory()  # all ways of a case are in memory at once: 28 GB of training, if each kept its own
        print(json.dumps(report), file=self.reports, flush=True)
        seconds = sys.stdin.readline()
        if not seconds:
            os._exit(0)  # nothing that it trained is wanted
        self.work, self.seconds, self.started = Work(), float(seconds), self.clock()


def peak_memory() -> int:
    """Return the most memory that this process, or one that it has started, has had, in bytes; 0 on other systems."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024) if own else 0


@dataclass(frozen=True)
class Way:
    """A way to do the work of a case. `run(folder, meter)` never returns: the meter ends its process."""

    what: str  # a sentence for the reader of the table
    run: Callable[[Path, Meter], None]
    goes_with: str = "tokens"  # the field of Work that its time goes with: windows, where they are padded to one length
    warm_up: int = 3
    here: Callable[[], bool] = lambda: True  # whether this machine can do it


@dataclass(frozen=True)
class Case:
    """The same work, done in several ways; `baselines` are those that the others are compared with."""

    name: str
    what: str
    prepare: Callable[[Path], None]  # writes into a folder what all ways need, once for all cases that have it
    tokens: float  # mean of a window
    ways: Mapping[str, Way]
    baselines: tuple[str, ...]


class Worker:
    """The process of a way, seen from outside."""

    def __init__(self, case: Case, way: str, clock: str, folder: Path) -> None:
        self.log = folder / f"{way.replace(' ', '-')}.log"
        command = [sys.executable, "-m", "benchmarks.speed.worker", case.name, way, clock, str(folder)]
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **({"OMP_NUM_THREADS": "1"} if clock == "cpu" else {})}
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=env
            )
        self._report()

    def round(self, seconds: float) -> Round:
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        return Round(**self._report())

    def _report(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a way has ended too early:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
        report: dict[str, float] = json.loads(line)
        return report

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(case: Case, rounds: int, seconds: float, clock: str, folder: Path) -> dict[str, list[Round]]:
    """Return what each way of the case did in each round; those that this machine can't do are left out.

    `folder` has what `case.prepare` writes.
    """
    ways = [name for name, way in case.ways.items() if way.here()]
    workers: dict[str, Worker] = {}
    try:
        for name in ways:  # one after another, so that each warms up alone
            workers[name] = Worker(case, name, clock, folder)
        found: dict[str, list[Round]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:  # each is the first once
                found[name].append(workers[name].round(seconds))
            print(f"{case.name}: round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        for worker in workers.values():
            worker.end()
    return found
