"""An error in one process ends all, with one message on the terminal and one exit code."""

import json
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import PrefixStore, TCPStore

from finetune.core import timing
from finetune.core.errors import HandoffError, PeerError
from finetune.distributed import channel
from finetune.distributed.failure import keep_watch
from tests.conftest import finetune_words
from tests.forking import Forks
from tests.launching import Launched, launch, port

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
PAUSE = 40  # seconds


def test_an_error_of_all_is_said_once(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    words = finetune_words(prepared, tmp_path, max_steps=2)
    words[words.index("--preprocess_output") + 1] = str(tmp_path / "nothing")
    run = launch(tmp_path, words, "torchrun", PYTHON_EXEC=forks.python)
    assert run.codes(60) == [1]
    said = run.said()
    ours, theirs = said.split("ChildFailedError", 1)
    assert ours.count("\nhand-off error: ") == 1 and "preprocess.json" in theirs  # what torchrun shows of it
    assert "exitcode  : 4" in theirs and "exitcode  : -" not in theirs
    log = (tmp_path / "pytorch" / "logs" / "rank1.txt").read_text()
    assert log.count("hand-off error: ") == 1 and "Traceback" not in log


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_is_said_by_the_main_process(
    forks: Forks, prepared: Path, tmp_path: Path, failing: int
) -> None:
    whole = finetune_words(prepared, tmp_path, max_steps=2)
    broken = [*whole]
    broken[broken.index("--preprocess_output") + 1] = str(tmp_path / "nothing")
    run = launch(tmp_path, [broken, whole] if failing == 0 else [whole, broken], forks=forks)
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


def test_an_error_right_after_the_rendezvous(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    """The others know it, however late the main process came to read their greetings."""
    words = finetune_words(prepared, tmp_path, max_steps=2)
    broken = [*words]
    broken[broken.index("--preprocess_output") + 1] = str(tmp_path / "nothing")
    run = launch(tmp_path, [broken, words], code=("-c", SLOW_TO_ADMIT), forks=forks)
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


UNEXPECTED = """
from finetune import run
from finetune.core import launch, process
from finetune.training import attempts

load_windows = attempts.load_windows

def failing(*arguments):
    if launch.rank():
        raise RuntimeError("no table")
    return load_windows(*arguments)

attempts.load_windows = failing
process.run_main(run.main)
"""


def test_an_unexpected_error_leaves_its_traceback_in_a_log(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    words = finetune_words(prepared, tmp_path, max_steps=2)
    run = launch(tmp_path, words, code=("-c", UNEXPECTED), forks=forks)
    assert run.codes(150) == [1, 1], run.said()
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
def test_an_error_is_said_once_though_others_come_later(
    forks: Forks, prepared: Path, tmp_path: Path, where: str
) -> None:
    words = finetune_words(prepared, tmp_path, max_steps=2)
    words[words.index("--preprocess_output") + 1] = str(tmp_path / "nothing")
    (tmp_path / "late.py").write_text(LATE.replace("WHERE", where))
    run = launch(tmp_path, words, "torchrun", code=(str(tmp_path / "late.py"),), PYTHON_EXEC=forks.python)
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


def test_a_parameter_error_is_said_though_the_main_process_comes_later(
    forks: Forks, prepared: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_START)
    words = finetune_words(prepared, tmp_path, max_steps="two")
    run = launch(tmp_path, words, "torchrun", code=(str(tmp_path / "slow.py"),), PYTHON_EXEC=forks.python)
    assert run.codes(60) == [1]
    ours, theirs = run.said().split("ChildFailedError", 1)
    assert ours.count("parameter error: ") == 1 and "exitcode  : 2" in theirs and "max_steps" in theirs


def test_an_output_folder_that_no_process_can_write(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    run = launch(tmp_path, finetune_words(prepared, Path("/sys/nowhere")), "torchrun", PYTHON_EXEC=forks.python)
    assert run.codes(60) == [1]
    ours, theirs = run.said().split("ChildFailedError", 1)
    assert ours.count("\nstorage error: ") == 1 and "exitcode  : 8" in theirs


MEMBER = """
import sys
from pathlib import Path
from finetune.core import process, timing
from finetune.distributed.failure import joined

timing.LEAVE = 0.1

def main(argv):
    with joined(Path(sys.argv[1]), 0):
        pass

process.run_main(main)
"""


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        ({"text": "all is well", "code": 0}, PeerError.exit_code, "was lost without an error message"),
        ({"text": "all is well", "code": 256}, PeerError.exit_code, "was lost without an error message"),
        ({"text": "\x1b[2J\u202egone", "code": 3}, 3, "failed: \\x1b[2J\\u202egone"),
    ],
)
def test_one_that_knows_the_secret_makes_no_success(tmp_path: Path, told: dict[str, Any], code: int, said: str) -> None:
    """Whoever reads it in PyTorch's store can end a run, which the store allows anyway, but only as one that failed."""
    chosen = port()
    variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": chosen}
    run = Launched(tmp_path, [[sys.executable, "-c", MEMBER, str(tmp_path)]], [variables])
    store = TCPStore("127.0.0.1", chosen, 2, is_master=False, timeout=timedelta(seconds=60))
    address, door, secret, _ = json.loads(PrefixStore("finetune", store).get("peers"))
    with socket.create_connection((address, door)) as connection:
        insider = channel.greet(connection, bytes.fromhex(secret), 1, "here", time.monotonic() + 10)
        insider.send(json.dumps({"rank": 1, "host": "here", **told}).encode())
        assert run.codes(30) == [code]
    assert said in run.said() and "\x1b" not in run.said() and "\u202e" not in run.said()


def test_a_port_that_is_taken(prepared: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken}
        run = launch(tmp_path, finetune_words(prepared, tmp_path), "alone", **variables)
        assert run.codes(60) == [PeerError.exit_code]
    assert f"127.0.0.1:{taken}" in run.said() and "Traceback" not in run.said()


def test_a_machine_that_is_gone_is_noticed_while_progress_is_sent() -> None:
    """The kernel's probes are for quiet connections: test_machines.py cuts a wire, this holds the arguments."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        keep_watch(connection)
        unacknowledged = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert 0 < timing.PULSE + unacknowledged <= 25
