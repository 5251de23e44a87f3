"""Processes that are forked from one that has imported the libraries: the seconds of the imports are spent once."""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

# Those that print nothing when they are imported: what the others print, each command has to turn off before.
QUIET = ("finetune", "torch", "datasets", "mlflow.pyfunc", "sklearn.metrics", "transformers.models.bert.modeling_bert")
# All that a run imports. Its tests look at what it says, not at whether a library says something too.
ALL = (*QUIET, "transformers.trainer", "mlflow.store.tracking.sqlalchemy_store", "evaluate", "transformers.pipelines")
ALL += ("finetune.training.attempts", "finetune.results.saving", "finetune.results.proof")


class Command(NamedTuple):
    """What a process is to be: `words` as Python is given them, from -m or -c on; where its two streams go."""

    words: list[str]
    variables: dict[str, str]  # all of them
    folder: str
    stdout: str
    stderr: str


class Fork:
    """One of them, which is a child of the server; used as subprocess.Popen is."""

    def __init__(self, forks: "Forks", pid: int) -> None:
        self.forks, self.pid = forks, pid

    def poll(self) -> int | None:
        self.forks.listen(0)
        return self.forks.codes.get(self.pid)

    def wait(self, timeout: float = 240) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = until - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.forks.listen(left)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process with the imports, while this is a context."""

    def __init__(self, folder: Path, variables: dict[str, str], libraries: Sequence[str] = QUIET) -> None:
        self.variables = variables
        self.codes: dict[int, int] = {}
        self.server = subprocess.Popen(
            [sys.executable, "-P", __file__, *libraries],
            cwd=folder,
            env={**variables, "OMP_NUM_THREADS": "1"},  # other threads than the first are not forked
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.server.stdout is not None
        self.answers = Lines(self.server.stdout.fileno())
        self.started: list[int] = []

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def start(self, command: Command) -> Fork:
        """Start one; the first waits for the imports."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(command).encode() + b"\n")
        self.server.stdin.flush()
        until = time.monotonic() + 240
        while not self.started:
            assert self.server.poll() is None and time.monotonic() < until, f"the server of forks is gone: {command}"
            self.listen(1)
        return Fork(self, self.started.pop())

    def listen(self, seconds: float) -> None:
        """Read what the server says: [pid] of one that it has started, [pid, code] of one that has ended."""
        for line in self.answers.read(seconds):
            pid, *code = json.loads(line)
            if code:
                self.codes[pid] = code[0]
            else:
                self.codes.pop(pid, None)
                self.started.append(pid)

    def run(self, commands: Sequence[Command], seconds: float = 240) -> list[int]:
        """Run the commands at the same time, and return their exit codes once all have ended."""
        return [fork.wait(seconds) for fork in [self.start(command) for command in commands]]


class Lines:
    """Whole lines of a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.rest = pipe, b""
        self.open = True

    def read(self, seconds: float | None) -> list[bytes]:
        """Return those that there are, after so many seconds at most; None waits for one."""
        ready, _, _ = select.select([self.pipe], [], [], seconds)
        if not ready:
            return []
        read = os.read(self.pipe, 2**16)
        self.open = bool(read)
        *whole, self.rest = (self.rest + read).split(b"\n")
        return whole


def serve(libraries: Sequence[str]) -> None:
    answers, given = os.dup(1), set(os.environ)
    os.dup2(2, 1)  # what is printed is no answer
    for name in libraries:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page of the libraries' objects
    commands, running = Lines(os.dup(0)), 0
    while commands.open:
        for line in commands.read(0.02 if running else None):
            if (pid := os.fork()) == 0:
                os.close(answers)
                os.close(commands.pipe)
                command = Command(*json.loads(line))
                for name in given - command.variables.keys():
                    del os.environ[name]
                become(command)
            running += 1
            os.write(answers, json.dumps([pid]).encode() + b"\n")
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            running -= 1
            os.write(answers, json.dumps([pid, os.waitstatus_to_exitcode(status)]).encode() + b"\n")


def become(command: Command) -> NoReturn:
    """Be the command. A folder that is called `gone` is removed once this process is in it."""
    for number, path in enumerate((os.devnull, command.stdout, command.stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(command.variables, PWD=command.folder)
    os.chdir(command.folder)
    if Path(command.folder).name == "gone":
        Path(command.folder).rmdir()
    kind, code, *words = command.words
    sys.path.insert(0, command.folder)
    sys.argv = [kind, *words]
    if kind == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1:])
