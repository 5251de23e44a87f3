"""Processes that are forked from one that has imported the libraries: the seconds of the imports are spent once.

A process that tests start themselves is a `Command`. What is started by a program is forked where that takes
`Forks.python` for Python: a program that hands on its words and streams, and ends as the fork does.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

# Those that print nothing when they are imported: what the others print, each command has to turn off before.
QUIET = ("finetune", "torch", "datasets", "mlflow.pyfunc", "sklearn.metrics", "transformers.models.bert.modeling_bert")
# All that a run imports. Its tests look at what it says, not at whether a library says something too.
ALL = (*QUIET, "transformers.trainer", "mlflow.store.tracking.sqlalchemy_store", "evaluate", "transformers.pipelines")
ALL += ("finetune.training.attempts", "finetune.results.saving", "finetune.results.proof")


# It is named `python`, in a folder that pipelines put first into the PATH of their steps.
PYTHON = """#!{real} -IS
import json, os, signal, socket, sys

if sys.argv[1] == "-u":
    del sys.argv[1]
if sys.argv[1][:1] == "-" and sys.argv[1] not in ("-m", "-c"):
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({place!r})
socket.send_fds(server, [json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode() + b"\\n"], [0, 1, 2])
answers = server.makefile()
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


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
        place = folder / "socket"
        self.listener = socket.socket(socket.AF_UNIX)  # what comes early waits for the imports
        self.listener.bind(str(place))
        self.listener.listen()
        self.server = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.listener.fileno()), *libraries],
            pass_fds=[self.listener.fileno()],
            cwd=folder,
            env={**variables, "OMP_NUM_THREADS": "1"},  # other threads than the first are not forked
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.server.stdout is not None
        self.answers = Lines(self.server.stdout.fileno())
        self.started: list[int] = []
        self.python = folder / "bin" / "python"
        self.python.parent.mkdir()
        self.python.write_text(PYTHON.format(real=sys.executable, place=str(place)))
        self.python.chmod(0o755)

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()
        self.listener.close()

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

    @contextlib.contextmanager
    def taken_for_python(self) -> Iterator[None]:
        """Let what this process starts as `sys.executable`, and the steps of its pipelines, be forked."""
        real, sys.executable = sys.executable, str(self.python)
        try:
            yield
        finally:
            sys.executable = real

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


class Server:
    """The process with the imports: it forks what it is told on its stdin, and what `Forks.python` hands on."""

    def __init__(self, listener: socket.socket, libraries: Sequence[str]) -> None:
        self.listener = listener
        self.answers, self.given = os.dup(1), set(os.environ)
        os.dup2(2, 1)  # what is printed is no answer
        self.python = str(Path("bin", "python").resolve())
        self.running: dict[int, socket.socket | None] = {}  # pid -> who handed it on
        for name in libraries:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page of the libraries' objects
        self.commands = Lines(os.dup(0))

    def serve(self) -> None:
        while self.commands.open:
            asking = [connection for connection in self.running.values() if connection]
            watched = [self.commands.pipe, self.listener, *asking]
            ready, _, _ = select.select(watched, [], [], 0.02 if self.running else None)
            if self.commands.pipe in ready:
                for line in self.commands.read(0):
                    pid = self.fork(Command(*json.loads(line)), None)
                    os.write(self.answers, json.dumps([pid]).encode() + b"\n")
            if self.listener in ready:
                self.hand_on()
            for pid, connection in self.running.items():
                if connection in ready:  # it says nothing more: it is gone
                    os.kill(pid, signal.SIGKILL)
            self.reap()

    def hand_on(self) -> None:
        connection, _ = self.listener.accept()
        text, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
        while not text.endswith(b"\n"):
            text += connection.recv(2**20)
        words, variables, folder = json.loads(text)
        pid = self.fork(Command(words, variables, folder, "", ""), connection, streams)
        tell(connection, pid)
        for stream in streams:
            os.close(stream)

    def fork(self, command: Command, connection: socket.socket | None, streams: Sequence[int] = ()) -> int:
        if pid := os.fork():
            self.running[pid] = connection
            return pid
        os.close(self.answers)
        os.close(self.commands.pipe)
        for held in (self.listener, connection, *self.running.values()):
            if held:
                held.close()
        for name in self.given - command.variables.keys():
            del os.environ[name]
        sys.executable = self.python
        if connection:
            forget("finetune")  # it comes from where this process finds it
        become(command, streams)

    def reap(self) -> None:
        while self.running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            code = os.waitstatus_to_exitcode(status)
            if connection := self.running.pop(pid):
                tell(connection, code)
                connection.close()
            else:
                os.write(self.answers, json.dumps([pid, code]).encode() + b"\n")


def tell(connection: socket.socket, number: int) -> None:
    """Whoever is gone is noticed elsewhere."""
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % number)


def forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def become(command: Command, streams: Sequence[int]) -> NoReturn:
    """Be the command. A folder that is called `gone` is removed once this process is in it."""
    paths = (os.devnull, command.stdout, command.stderr)
    for number, stream in enumerate(streams or [os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) for path in paths]):
        os.dup2(stream, number)
    os.environ.update(command.variables, PWD=command.folder)
    os.chdir(command.folder)
    if Path(command.folder).name == "gone":
        Path(command.folder).rmdir()
    kind, *words = command.words
    code = words.pop(0) if kind in ("-m", "-c") else kind
    sys.path[:0] = [command.folder, *filter(None, command.variables.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [kind, *words]
    if kind == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(code, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    Server(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]).serve()
