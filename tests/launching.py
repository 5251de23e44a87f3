"""Runs of several processes, started as users and platforms start them."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.forking import Command, Fork, Forks

BIN = Path(sys.executable).parent
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none")


class Launched:
    """The processes that were started (torchrun and mpirun start more), and what each printed.

    With `forks`, commands are what Python is told, and run in forks.
    """

    def __init__(
        self,
        folder: Path,
        commands: Sequence[Sequence[str]],
        variables: Sequence[dict[str, Any]],
        folders: Sequence[Path | None] | None = None,
        forks: Forks | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"printed{i}.txt" for i in range(len(commands))]
        self.ranks = [int(own.get("RANK", 0)) for own in variables]
        self.running: list[subprocess.Popen[bytes] | Fork] = []
        for log, command, own, cwd in zip(
            self.logs, commands, variables, folders or [None] * len(commands), strict=True
        ):
            env = {**os.environ, **variables_of(folder, own)}
            log.write_text("")
            if forks:
                given = Command([*command], env, str(cwd or Path.cwd()), str(log), str(log))
                self.running.append(forks.start(given))
                continue
            with log.open("w") as file:
                self.running.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=cwd))

    def said(self, i: int = 0) -> str:
        return said(self.logs[i])

    def codes(self, seconds: float = 240) -> list[int]:
        """Exit codes, once all have ended."""
        until = time.monotonic() + seconds
        try:
            return [process.wait(timeout=max(0.1, until - time.monotonic())) for process in self.running]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait()

    def until(self, true: Callable[[], Any], seconds: float = 120) -> Any:
        """Wait for something to be true while the processes run."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := true():
                return found
            assert any(process.poll() is None for process in self.running), self.said()
            time.sleep(0.01)
        self.kill()
        raise AssertionError(f"waited {seconds} s in vain:\n{self.said()}")

    def pid(self, rank: int) -> int:
        """Of the Python process of a rank, whoever started it."""
        for process, own in zip(self.running, self.ranks, strict=True):
            if isinstance(process, Fork):
                if own == rank:
                    return process.pid
                continue
            for pid in (process.pid, *_below(process.pid)):
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
                variables = dict(entry.partition("=")[::2] for entry in environment)
                found = variables.get("RANK", variables.get("OMPI_COMM_WORLD_RANK", "0"))
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                launcher = Path(words[0]).name == MPIRUN[0] or any(Path(word).name == "torchrun" for word in words[:2])
                if "finetune.run" in words and not launcher and found == str(rank):
                    return pid
        raise AssertionError(f"there is no rank {rank}")

    def send(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pid(rank), number)


def said(log: Path) -> str:
    return log.read_text(errors="replace").replace("\r", "\n")


def variables_of(folder: Path, own: dict[str, Any]) -> dict[str, str]:
    """What a process is told besides what this one is."""
    shared = {}
    if store := os.environ.get("MLFLOW_TRACKING_URI", "").removeprefix("sqlite:///"):
        # Two runs that write a store at once are in each other's way; to make a new one takes a second.
        if Path(store).is_file() and not (folder / "mlflow.db").exists():
            shutil.copy(store, folder / "mlflow.db")
        shared = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return {"OMP_NUM_THREADS": "1", **shared, **{name: str(value) for name, value in own.items()}}


def _below(pid: int) -> list[int]:
    children = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return [*children, *(below for child in children for below in _below(child))]


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def port() -> int:
    """Below those that the system gives to connections, and another one in each worker of pytest."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        chosen = random.randrange(10_000 + 2_000 * (worker % 10), 12_000 + 2_000 * (worker % 10))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", chosen)):
            return chosen


def launch(
    folder: Path,
    words: Sequence[Any],
    how: str = "azure",
    processes: int = 2,
    code: Sequence[str] = ("-m", "finetune.run"),
    folders: Sequence[Path] | None = None,
    forks: Forks | None = None,
    **variables: Any,
) -> Launched:
    """Start `finetune.run`: as "azure" does, by "torchrun" or "mpirun", as two "nodes" of torchrun, or "alone".

    `words` are those of every process, or with "azure" a list for each; `code` is what Python is told to run,
    `folders` with "azure" the one that each is started in. With `forks` those of "azure" and "alone" are forked.
    """
    each = [[*own] for own in words] if isinstance(words[0], list) else [[*words]] * processes
    module = [*code, *each[0]]
    python, torchrun = [sys.executable, *module], str(BIN / "torchrun")
    if how == "alone":
        return Launched(folder, [module if forks else python], [variables], forks=forks)
    if how == "torchrun":
        command = [torchrun, "--nproc-per-node", str(processes), "--master-port", str(port()), *module]
        return Launched(folder, [command], [variables])
    if how == "mpirun":
        if not shutil.which("mpirun"):
            pytest.skip("there is no mpirun: apt-get install openmpi-bin")
        return Launched(folder, [[*MPIRUN, "-np", str(processes), *python]], [variables])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), **variables}
    if how == "nodes":  # each thinks that it is a machine of its own
        nodes = ["--nnodes", str(processes), "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
        nodes += ["--master-port", str(shared["MASTER_PORT"])]
        commands = [[torchrun, *nodes, "--node-rank", str(node), *module] for node in range(processes)]
        return Launched(folder, commands, [variables] * processes)
    interpreter = [] if forks else [sys.executable]
    commands = [[*interpreter, *code, *given] for given in each]
    return Launched(folder, commands, of_azure(processes, shared), folders, forks)


def of_azure(processes: int, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """The variables that Azure ML sets for each process."""
    shared = {**shared, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]


def stopping(step: int) -> str:
    """The code of a run whose last process has a SIGTERM in this step."""
    return f"""
import os, signal
from finetune import run
from finetune.core import launch, process
from finetune.training.trainer import FinetuneTrainer

training_step, steps = FinetuneTrainer.training_step, []

def signalled(*arguments):
    steps.append(0)
    if len(steps) == {step} and launch.rank() == launch.world_size() - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return training_step(*arguments)

FinetuneTrainer.training_step = signalled
process.run_main(run.main)
"""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For runs in this process whose weights must be, to the bit, those of processes that are launched."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fill(disk: Path, left: int) -> Path:
    """A file that takes all room but `left` bytes, while others write too."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(disk).free) > left:
            file.write(b"0" * min(free - left, 2**20))
    return ballast
