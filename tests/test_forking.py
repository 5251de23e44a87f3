"""What is started as `Forks.python` is as what Python starts: words, streams, signals and the way it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forking import Forks


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Without the large libraries."""
    with Forks(tmp_path_factory.mktemp("forks"), dict(os.environ), ("finetune",)) as forks:
        yield forks


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").is_dir()


def test_words_streams_and_exit_code(bare: Forks, tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv, input(), os.getcwd(), os.environ['OWN']); sys.exit('no')"
    command = [bare.python, "-c", code, "a b", "--c"]
    env = {**os.environ, "OWN": "x y"}
    ran = subprocess.run(command, input="given\n", env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = f"['-c', 'a b', '--c'] given {tmp_path} x y\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, said, "no\n")


def test_a_script_and_the_package_beside_it(bare: Forks, tmp_path: Path) -> None:
    """The package comes from where the process finds it, though the server has imported another."""
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "__init__.py").touch()
    (tmp_path / "step.py").write_text("import finetune; print(finetune.__file__)")
    ran = subprocess.run([bare.python, "step.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout == f"{tmp_path / 'finetune' / '__init__.py'}\n", ran.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_fork_and_the_fork_with_it(bare: Forks, number: signal.Signals) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    process = subprocess.Popen([bare.python, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    fork = int(process.stdout.readline())
    assert fork != process.pid and is_there(fork)
    process.send_signal(number)
    assert process.wait(30) == -number
    until = time.monotonic() + 30
    while is_there(fork) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_there(fork)


def test_it_is_taken_for_python(bare: Forks) -> None:
    real = sys.executable
    with bare.taken_for_python():
        ran = subprocess.run(
            [sys.executable, "-c", "import sys; print(sys.executable)"], capture_output=True, check=False
        )
    assert ran.stdout.decode() == f"{bare.python}\n" and sys.executable == real
