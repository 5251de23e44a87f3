"""Goodput: the share of the time of a run that faults befall in which it makes steps that count in the end.

    python -m benchmarks.goodput [--seconds 1200] [--every 120] [--signals SIGTERM SIGKILL] [--save-steps 20]

Two processes on this machine, started as Azure ML starts them, train a BERT of MiniLM's shape on windows as long as
SQuAD's (benchmarks/speed). So many seconds after its first step, half of `every` to half as many more, one of them has
a signal, each kind in turn; once all have left, the same command is started again. A process that is stopped by SIGSTOP
is killed when the other one has left. Writes results.json and table.md into --out, out/goodput unless given.
"""

import argparse
import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from benchmarks.speed.harness import ROOT
from benchmarks.speed.machine import described
from benchmarks.speed.training import FOREVER, QA, SHAPE, prepare

PROCESSES = 2
SIGNALS = ("SIGTERM", "SIGKILL", "SIGSTOP")
POLL = 0.01  # seconds
# The parts of a save that are timed in the main process, and the functions that do them.
PARTS = {
    "weights": ("transformers:Trainer", "save_model"),
    "optimizer": ("finetune.training.trainer:FinetuneTrainer", "_save_optimizer_and_scheduler"),
    "fsync and checksums": ("finetune.training.checkpoints", "flush"),
    "removal of older ones": ("finetune.training.checkpoints", "keep"),
    "all": ("finetune.training.trainer:FinetuneTrainer", "_save_checkpoint"),
}


@dataclass(frozen=True)
class Event:
    """Something that the main process of a run did, and when it was done, by the clock on the wall."""

    what: str  # "loaded": the libraries are imported; "train"; "step"; a part of a save
    at: float
    step: int = 0
    seconds: float = 0.0  # that it took, of the clock
    processor: float = 0.0  # and of the processor; of what is no part of a save, since the start of the process


@dataclass
class Life:
    """The processes of the run, from their start until the last one has left."""

    started: float
    signal: str = ""
    struck: float = 0.0
    left: float = 0.0
    codes: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def first(self, what: str) -> Event | None:
        return next((event for event in self.events if event.what == what), None)

    def steps(self) -> list[Event]:
        return [event for event in self.events if event.what == "step"]


def worked() -> None:
    """Be a process of the run: `finetune.run` with the words of this one, which writes down what it does and when."""
    from functools import wraps
    from pkgutil import resolve_name

    from transformers import TrainerCallback

    from finetune import run
    from finetune.core import launch, process
    from finetune.training import arguments, attempts, tracking  # noqa: F401  (all that a run imports)

    events, *words = sys.argv[1:]
    file = Path(events if launch.rank() == 0 else os.devnull).open("a", encoding="utf-8", buffering=1)

    def note(what: str, step: int = 0) -> None:
        print(json.dumps(asdict(Event(what, time.time(), step, processor=time.process_time()))), file=file)

    class Noting(TrainerCallback):
        def on_train_begin(self, args: object, state: Any, control: object, **_: object) -> None:
            note("train", state.global_step)

        def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:
            note("step", state.global_step)

    def time_part(part: str, owner: Any, name: str) -> None:
        function = vars(owner)[name]

        @wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            clock, processor = time.perf_counter(), time.process_time()
            found = function(*given, **named)
            took = time.perf_counter() - clock, time.process_time() - processor
            print(json.dumps(asdict(Event(part, time.time(), 0, *took))), file=file)
            return found

        setattr(owner, name, timed)

    before = arguments.callbacks
    arguments.callbacks = lambda *those: [*before(*those), Noting()]
    for part, (owner, name) in PARTS.items():
        time_part(part, resolve_name(owner), name)
    note("loaded")
    process.run_main(run.main, words)


@contextmanager
def running(folder: Path, words: Sequence[str]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Start the processes of the run as Azure ML does, and leave none behind."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    shared |= {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-c", "from benchmarks.goodput import worked; worked()", str(folder / "events"), *words]
    started = []
    for rank in range(PROCESSES):
        own = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        with (folder / f"printed{rank}.txt").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **own}))
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            one.wait()


def live(folder: Path, words: Sequence[str], name: str, wait: float, until: float, chance: random.Random) -> Life:
    """Let the run train for so many seconds, give one of its processes the signal, and wait until all have left.

    Where the whole measurement ends before, with a step, they are killed, and the life has no signal.
    """
    events = folder / "events"
    events.write_text("")
    with running(folder, words) as processes:
        life = Life(started=time.time())
        strike = math.inf
        while strike == math.inf or time.monotonic() < min(strike, until):
            if (codes := [one.poll() for one in processes]) != [None] * PROCESSES:
                sys.exit(f"the run has ended by itself with {codes}: {(folder / 'printed0.txt').read_text()[-3000:]}")
            if strike == math.inf and '"step",' in events.read_text():
                strike = time.monotonic() + wait
            time.sleep(POLL)
        life.struck = time.time()
        if strike < until:
            struck = processes[chance.randrange(PROCESSES)]
            life.signal = name
            struck.send_signal(signal.Signals[name])
            while any(one.poll() is None for one in processes if name != "SIGSTOP" or one is not struck):
                time.sleep(POLL)
        life.left = time.time()
    life.codes = [int(one.returncode) for one in processes]
    life.events = [Event(**json.loads(line)) for line in events.read_text().splitlines()]
    return life


def lives(folder: Path, words: Sequence[str], given: argparse.Namespace) -> list[Life]:
    """Strike the run, one kind of signal after the other, until the time is over."""
    chance, found = random.Random(given.seed), []
    until = time.monotonic() + given.seconds
    for name in cycle(given.signals):
        found.append(live(folder, words, name, given.every * chance.uniform(0.5, 1.5), until, chance))
        last = found[-1]
        print(f"{last.signal or 'the end'}: {last.codes}, {len(last.steps())} steps", flush=True)
        if not last.signal:
            break
    return found


def summary(found: Sequence[Life]) -> dict[str, Any]:
    """Return the goodput, and medians of what each signal and each save costs, in seconds."""
    durations = [later.at - earlier.at for life in found for earlier, later in pairwise(life.steps())]
    step = statistics.median(durations)
    wall = found[-1].left - found[0].started
    saves = {part: [e for life in found for e in life.events if e.what == part] for part in PARTS}
    made = sum(len(life.steps()) for life in found)
    counted = found[-1].steps()[-1].step
    signals = dict.fromkeys(life.signal for life in found if life.signal)
    return {
        "seconds": wall,
        "median_step": step,
        "steps_that_count": counted,
        "steps_made_twice": made - counted,
        "goodput": counted * step / wall,
        "saves": {part: cost_of(of_part) for part, of_part in saves.items() if of_part},
        "share_of_saves": sum(event.seconds for event in saves["all"]) / wall,
        "signals": {name: costs(found, name, step) for name in signals},
    }


def cost_of(events: Sequence[Event]) -> dict[str, float]:
    """Return the seconds of a part of a save."""
    seconds = [event.seconds for event in events]
    processor = statistics.median(event.processor for event in events)
    return {"median": statistics.median(seconds), "longest": max(seconds), "processor": processor}


def costs(found: Sequence[Life], name: str, step: float) -> dict[str, Any]:
    """Return the medians over the signals of a kind that met a run which trained, and which trained again."""
    parts: list[dict[str, float]] = []
    for life, following in pairwise(found):
        loaded, train, again = following.first("loaded"), following.first("train"), following.first("step")
        if life.signal != name or not life.steps() or not (loaded and train and again):
            continue
        save = sum(event.seconds for event in life.events if event.what == "all" and event.at > life.struck)
        parts.append(
            {
                "save": save,
                "leave": life.left - life.struck - save,
                "start": loaded.at - following.started,
                "load": train.at - loaded.at,
                "first step": again.at - train.at,
                "to the first step": again.at - life.struck,
                "processor": again.processor,
                "steps again": max(0.0, (life.steps()[-1].step + 1 - again.step) * step),
            }
        )
    medians = {part: statistics.median(one[part] for one in parts) for part in parts[0]} if parts else {}
    return {"count": len(parts), "codes": [life.codes for life in found if life.signal == name], **medians}


def table(found: dict[str, Any]) -> str:
    """Return a summary as Markdown."""
    names = ("leave", "save", "start", "load", "first step", "processor", "to the first step", "steps again")
    head = f"Goodput {found['goodput']:.0%}: {found['steps_that_count']} steps of {found['median_step']:.2f} s in"
    lines = [f"{head} {found['seconds']:.0f} s; {found['steps_made_twice']} were made twice.", ""]
    lines += [f"| signal | times | {' | '.join(names)} |", f"|{' --- |' * (2 + len(names))}"]
    for name, cost in found["signals"].items():
        cells = [f"{cost[part]:.1f}" if part in cost else "" for part in names]
        lines.append(f"| {name} | {cost['count']} | {' | '.join(cells)} |")
    columns = ("median", "longest", "processor")
    lines += ["", f"| part of a save | {' | '.join(columns)} |", f"|{' --- |' * (1 + len(columns))}"]
    for part, one in found["saves"].items():
        lines.append(f"| {part} | {' | '.join(f'{one[column]:.2f}' for column in columns)} |")
    return "\n".join([*lines, "", f"Saves took {found['share_of_saves']:.1%} of the time.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200.0, help="in all, and until there is a step")
    parser.add_argument("--every", type=float, default=120.0, help="seconds from a first step to a signal, on average")
    parser.add_argument(
        "--signals", nargs="+", default=["SIGTERM", "SIGKILL"], choices=["SIGTERM", "SIGKILL", "SIGSTOP"]
    )
    parser.add_argument("--save-steps", type=int, default=20)
    parser.add_argument("--hang-timeout", type=float, default=30.0, help="minutes")
    parser.add_argument("--hidden", type=int, default=SHAPE["hidden_size"], help="768 with 12 layers: BERT base")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--batch", type=int, default=4, help="windows of each process in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "goodput")
    given = parser.parse_args()
    shape = {"hidden_size": given.hidden, "intermediate_size": 4 * given.hidden, "num_hidden_layers": given.layers}
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(QA, folder, {**SHAPE, **shape})
        words = ["--task", QA, *(word for pair in settings(given, folder).items() for word in map(str, pair))]
        load = os.getloadavg()[0]
        found = lives(folder, words, given)
    results = {
        "machine": described(),
        "load": [load, os.getloadavg()[0]],
        "given": {name: value for name, value in vars(given).items() if name != "out"},
        **summary(found),
        "lives": [asdict(life) for life in found],
    }
    (given.out / "results.json").write_text(json.dumps(results, indent=1))
    (given.out / "table.md").write_text(table(results))
    print(table(results) + f"Load of the machine: {load:.1f} and {os.getloadavg()[0]:.1f}. Written to {given.out}")


def settings(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    return {
        "--preprocess_output": folder / "data",
        "--model_selector_output": folder / "model",
        "--pytorch_model_folder": folder / "pytorch",
        "--mlflow_model_folder": folder / "mlflow",
        "--max_steps": FOREVER,
        "--evaluation_strategy": "steps",
        "--eval_steps": FOREVER,
        "--save_steps": given.save_steps,
        "--save_total_limit": 2,
        "--per_device_train_batch_size": given.batch,
        "--hang_timeout": given.hang_timeout,
    }


if __name__ == "__main__":
    main()
