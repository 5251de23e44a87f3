"""Processes that are forked from one that has imported the libraries: the seconds of the imports are spent once."""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

# Those that print nothing when they are imported: what the others print, each command has to turn off before.
QUIET = ("finetune", "torch", "datasets", "mlflow.pyfunc", "sklearn.metrics", "transformers.models.bert.modeling_bert")


class Command(NamedTuple):
    """What a process is to be: `words` as Python is given them, from -m or -c on; where its two streams go."""

    words: list[str]
    variables: dict[str, str]
    folder: str
    stdout: str
    stderr: str


class Forks:
    """The process with the imports, while this is a context."""

    def __init__(self, folder: Path, variables: dict[str, str], libraries: Sequence[str] = QUIET) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-P", __file__, *libraries],
            cwd=folder,
            env={**variables, "OMP_NUM_THREADS": "1"},  # other threads than the first are not forked
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def run(self, commands: Sequence[Command], seconds: float = 240) -> list[int]:
        """Run the commands at the same time, and return their exit codes once all have ended."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(commands) + "\n")
        self.server.stdin.flush()
        ready, _, _ = select.select([self.server.stdout], [], [], seconds)
        assert ready, f"not done after {seconds} s: {commands}"
        codes: list[int] = json.loads(self.server.stdout.readline())
        return codes


def serve(libraries: Sequence[str]) -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # what is printed is no answer
    for name in libraries:
        importlib.import_module(name)
    for line in sys.stdin:
        pids = []
        for fields in json.loads(line):
            if (pid := os.fork()) == 0:
                become(Command(*fields))
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        os.write(answers, json.dumps(codes).encode() + b"\n")


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
