"""Start the processes of one step as Azure ML does, show and watch them, and end them together."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from finetune.core import timing
from finetune.core.errors import Fault, StepError
from finetune.core.launch import free_port
from finetune.core.types import Json

LOG_LINES_SHOWN = 12


def execute(name: str, command: str, processes: int, world: int, home: Path, output: Path) -> None:
    """Start `world` processes of a command in home/code, `processes` on each machine, and wait.

    Raises: StepError with the end of the log of the first that fails.
    """
    port = free_port()
    running: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    logs = [home / ("log.txt" if rank == 0 else f"log.rank{rank}.txt") for rank in range(world)]
    try:
        for rank, log in enumerate(logs):
            env = environment(rank, processes, world, port, output)
            # A shell's background jobs are started with interrupts ignored, and would pass that on.
            words = ["env", "--default-signal=INT", "bash", "-c", command]
            process = subprocess.Popen(
                words,
                cwd=home / "code",
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running.append(process)
            readers.append(threading.Thread(target=pass_on, args=(process.stdout, log, rank == 0), daemon=True))
            readers[-1].start()
        failed = first_failure(running)
    except Terminated:
        stop(running, signal.SIGTERM)
        raise
    finally:
        stop(running)
    for reader in readers:
        reader.join(timeout=timing.STOP[signal.SIGINT])
    if failed is not None:
        rank, code = failed
        last = logs[rank].read_text(errors="replace").replace("\r", "\n").splitlines()[-LOG_LINES_SHOWN:]
        why = "the end of its log:\n" + "\n".join(f"    {line}" for line in last)
        fix = "mend that and run the same command again: finished steps are skipped"
        raise StepError(Fault(f"{name} ended with exit code {code}", where=str(logs[rank]), why=why, fix=fix))


def environment(rank: int, processes: int, world: int, port: int, output: Path) -> dict[str, str]:
    """Return the variables that Azure ML sets for one process of a PyTorch job."""
    own: Json = {
        "RANK": rank,
        "LOCAL_RANK": rank % processes,
        "NODE_RANK": rank // processes,
        "LOCAL_WORLD_SIZE": processes,
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONUNBUFFERED": 1,
    }
    if world > 1:
        own["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // world)
    live = {"FINETUNE_LIVE": "1"} if sys.stdout.isatty() else {}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    tracking = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output}/mlflow.db"
    return {**os.environ, **{k: str(v) for k, v in own.items()}, **live, "PATH": path, "MLFLOW_TRACKING_URI": tracking}


def pass_on(pipe: IO[bytes], log: Path, shown: bool) -> None:
    """Write a process's output to its log, and to the terminal if asked, as it comes, progress bars and all."""
    with log.open("wb", buffering=0) as written:
        while block := os.read(pipe.fileno(), 65536):
            written.write(block)
            try:
                if shown:
                    sys.stdout.buffer.write(block)
                    sys.stdout.buffer.flush()
            except (OSError, AttributeError, ValueError):
                shown = False  # nobody reads any more; the process must not wait for that


def first_failure(running: list[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Wait until all have ended well, or one has not; return its rank and exit code."""
    while True:
        codes = [process.poll() for process in running]
        for rank, code in enumerate(codes):
            if code:
                return rank, code
        if all(code == 0 for code in codes):
            return None
        time.sleep(timing.STEP_POLL)


def stop(running: list[subprocess.Popen[bytes]], kind: signal.Signals = signal.SIGINT) -> None:
    """End what is left of the process groups, by a signal first, by SIGKILL after a grace period or a second Ctrl-C."""
    try:
        alive = [process for process in running if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, kind)
        until = time.monotonic() + timing.STOP[kind]
        while any(process.poll() is None for process in alive) and time.monotonic() < until:
            time.sleep(timing.STEP_POLL)
    except KeyboardInterrupt:
        pass
    for process in running:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Terminated(KeyboardInterrupt):
    """A SIGTERM to this process, which is passed on."""


def end_with_this_process() -> None:
    """Turn a signal to end into a Ctrl-C: the processes live in sessions of their own and would go on."""

    def interrupt(kind: int, _: object) -> None:
        raise Terminated if kind == signal.SIGTERM else KeyboardInterrupt

    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, interrupt)
