"""An error in one process ends all, with one message on the terminal and one exit code."""

import json
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from finetune.core.errors import HandoffError, PeerError
from finetune.distributed import failure
from tests.conftest import finetune_words
from tests.launching import launch

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
PAUSE = 40  # seconds


def test_an_error_of_all_is_said_once(prepared: Path, tmp_path: Path) -> None:
    words = finetune_words(prepared, tmp_path, max_steps=2)
    words[words.index("--preprocess_output") + 1] = str(tmp_path / "nothing")
    run = launch(tmp_path, words, "torchrun")
    assert run.codes(60) == [1]
    said = run.said()
    ours, theirs = said.split("ChildFailedError", 1)
    assert ours.count("\nhand-off error: ") == 1 and "preprocess.json" in theirs  # what torchrun shows of it
    assert "exitcode  : 4" in theirs and "exitcode  : -" not in theirs
    log = (tmp_path / "pytorch" / "logs" / "rank1.txt").read_text()
    assert log.count("hand-off error: ") == 1 and "Traceback" not in log


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_is_said_by_the_main_process(prepared: Path, tmp_path: Path, failing: int) -> None:
    whole = finetune_words(prepared, tmp_path, max_steps=2)
    broken = [*whole]
    broken[broken.index("--preprocess_output") + 1] = str(tmp_path / "nothing")
    run = launch(tmp_path, [broken, whole] if failing == 0 else [whole, broken])
    assert run.codes(60) == [HandoffError.exit_code] * 2
    assert "Traceback" not in run.said(0) + run.said(1)
    assert run.said(failing).count(f"hand-off error: {tmp_path / 'nothing'} has no preprocess.json") == 1
    said = run.said(1 - failing)
    assert said.count("run ended: ") == 1 and f"process {failing} of 2" in said
    assert f"failed: hand-off error: {tmp_path / 'nothing'} has no preprocess.json" in said and "fix: " in said


SLOW_TO_ADMIT = """
import time
from finetune import run
from finetune.core import process
from finetune.distributed.failure import Peers

admit = Peers._admit

def slowly(*arguments):
    time.sleep(3)
    admit(*arguments)

Peers._admit = slowly
process.run_main(run.main)
"""


def test_an_error_right_after_the_rendezvous(prepared: Path, tmp_path: Path) -> None:
    """The others know it, however late the main process came to read their greetings."""
    words = finetune_words(prepared, tmp_path, max_steps=2)
    broken = [*words]
    broken[broken.index("--preprocess_output") + 1] = str(tmp_path / "nothing")
    run = launch(tmp_path, [broken, words], code=("-c", SLOW_TO_ADMIT))
    assert run.codes(90) == [HandoffError.exit_code] * 2, run.said(1)


BUSY = """
import ctypes
from finetune import run
from finetune.core import process
from finetune.training import checkpoints

finish = checkpoints.finish

def busily(*arguments):
    checkpoints.finish = finish  # the first time alone
    print("holding the GIL", flush=True)
    ctypes.PyDLL(None).sleep(SECONDS)
    finish(*arguments)

checkpoints.finish = busily
process.run_main(run.main)
"""


@pytest.mark.thorough
def test_a_process_that_is_busy_or_paused_is_not_lost(prepared: Path, tmp_path: Path) -> None:
    """Though no thread of it runs for longer than the 30 s in which a lost one is noticed."""
    code = BUSY.replace("SECONDS", str(PAUSE))
    run = launch(tmp_path, finetune_words(prepared, tmp_path, max_steps=2), code=("-c", code))
    run.until(lambda: "holding the GIL" in run.said())
    run.running[1].send_signal(signal.SIGSTOP)
    time.sleep(PAUSE)
    run.running[1].send_signal(signal.SIGCONT)
    assert run.codes() == [0, 0], run.said()


def test_an_unexpected_error_leaves_its_traceback_in_a_log(prepared: Path, tmp_path: Path) -> None:
    whole, copy = finetune_words(prepared, tmp_path, max_steps=2), tmp_path / "data"
    shutil.copytree(prepared / "data", copy)
    for path in (copy / "train" / "windows").glob("*.arrow"):
        path.write_bytes(b"no table")
    broken = [*whole]
    broken[broken.index("--preprocess_output") + 1] = str(copy)
    run = launch(tmp_path, [whole, broken])
    assert run.codes(60) == [1, 1]
    log = tmp_path / "pytorch" / "logs" / "rank1.txt"
    assert "Traceback" in log.read_text()
    assert "Traceback" not in run.said() and "process 1 of 2" in run.said() and str(log) in run.said()
    assert len(run.said().split("run ended: ")[1].splitlines()) <= 6


LATE = """
import time
from finetune import run
from finetune.core import launch, process
from finetune.data import folders

def later(do):
    def late(*arguments):
        time.sleep(2.0 * launch.rank())
        return do(*arguments)
    return late

WHERE
process.run_main(run.main)
"""


@pytest.mark.parametrize(
    "where",
    [
        "folders.Preprocessed.read = later(folders.Preprocessed.read)",  # torchrun's SIGTERM comes before its own error
        "process._end = later(process._end)",  # and after it
    ],
)
def test_an_error_is_said_once_though_others_come_later(prepared: Path, tmp_path: Path, where: str) -> None:
    words = finetune_words(prepared, tmp_path, max_steps=2)
    words[words.index("--preprocess_output") + 1] = str(tmp_path / "nothing")
    (tmp_path / "late.py").write_text(LATE.replace("WHERE", where))
    run = launch(tmp_path, words, "torchrun", code=(str(tmp_path / "late.py"),))
    assert run.codes(60) == [1]
    ours, theirs = run.said().split("ChildFailedError", 1)
    assert ours.count("\nhand-off error: ") == 1, run.said()
    assert theirs.count("exitcode  : 4") == 2, run.said()


SLOW_START = """
import time
from finetune import run
from finetune.core import launch, process

adopt_launcher = launch.adopt_launcher

def later(argv):
    words = adopt_launcher(argv)
    time.sleep(0 if launch.rank() else 2)
    return words

run.adopt_launcher = later
process.run_main(run.main)
"""


def test_a_parameter_error_is_said_though_the_main_process_comes_later(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_START)
    words = finetune_words(prepared, tmp_path, max_steps="two")
    run = launch(tmp_path, words, "torchrun", code=(str(tmp_path / "slow.py"),))
    assert run.codes(60) == [1]
    ours, theirs = run.said().split("ChildFailedError", 1)
    assert ours.count("parameter error: ") == 1 and "exitcode  : 2" in theirs and "max_steps" in theirs


def test_an_output_folder_that_no_process_can_write(prepared: Path, tmp_path: Path) -> None:
    run = launch(tmp_path, finetune_words(prepared, Path("/sys/nowhere")), "torchrun")
    assert run.codes(60) == [1]
    ours, theirs = run.said().split("ChildFailedError", 1)
    assert ours.count("\nstorage error: ") == 1 and "exitcode  : 8" in theirs


@pytest.mark.parametrize("greeting", [b"", b"hello\n", b"x" * 5000, b"\xff 1 here\n", b" 1 here\n", b"\n"])
def test_strangers_at_the_door(monkeypatch: pytest.MonkeyPatch, greeting: bytes) -> None:
    """They are turned away, and keep no process of the run out."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    main, store = failure.Peers(), HashStore()
    main.listen(store)
    port, token, _ = json.loads(store.get("peers"))
    with (
        socket.create_connection(("127.0.0.1", port)) as stranger,
        socket.create_connection(("127.0.0.1", port)) as one,
    ):
        stranger.sendall(greeting)
        one.sendall(f"{token} 1 here\n".encode())
        until = time.monotonic() + 5
        while not main.connections and time.monotonic() < until:
            time.sleep(0.01)
        assert [*main.connections] == [1]
        one.sendall(b"null\n")


def test_a_port_that_is_taken(prepared: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        run = launch(tmp_path, finetune_words(prepared, tmp_path), "alone", **variables)
        assert run.codes(60) == [PeerError.exit_code]
    assert f"127.0.0.1:{port}" in run.said() and "Traceback" not in run.said()
