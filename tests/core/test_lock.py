"""Two runs don't write into one folder, and a run that is gone holds nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from finetune import evaluation, model_selector, preprocess, run
from finetune.core import timing
from finetune.core.errors import StorageError
from finetune.core.lock import LOCK, Holder, held, refuse_if_lost
from finetune.core.outputs import Output, claimed, clear
from finetune.pipeline import main as run_pipeline
from tests.core.test_outputs import content, rows_in, words

HOLD = """
import sys, time
from pathlib import Path
from finetune.core.lock import held
with held({Path(sys.argv[1]): "--output_dir"}):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def another_run(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), "60"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def elsewhere(folder: Path, **values: object) -> Path:
    """The lock of a run on another machine."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = replace(Holder.here(), token="another", machine="another", host="node-7", process=1, program="run.py")
    (folder / LOCK).write_text(json.dumps(asdict(replace(holder, **values))))  # type: ignore[arg-type]
    return folder / LOCK


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.05, "SILENT": 0.5, "LOCK_POLL": 0.02, "TOLD": 0.2}.items():
        monkeypatch.setattr(timing, name, seconds)


def commands(prepared: Path, tmp_path: Path, out: Path) -> dict[str, tuple[Callable[[list[str]], None], list[str]]]:
    """A command line of each component that writes into `out`."""
    file, model = rows_in(tmp_path / "rows"), prepared / "model"
    data = {f"{split}_file_path": file for split in ("train", "validation", "test")}
    folders = {"preprocess_output": prepared / "data", "model_selector_output": model}
    trained = {"pytorch_model_folder": tmp_path / "pytorch", "mlflow_model_folder": out}
    pipeline = Path(__file__).parents[2] / "components/question_answering/pipeline.yaml"
    given = [f"{name}={value}" for name, value in {**data, "pytorch_model_path": model / "model"}.items()]
    return {
        "import": (model_selector.main, words(pytorch_model_path=model / "model", output_dir=out)),
        "preprocess": (preprocess.main, words(**data, model_selector_output=model, output_dir=out)),
        "finetune": (run.main, words(**folders, **trained)),
        "evaluation": (
            evaluation.main,
            words(pytorch_model_folder=model / "model", test_data=file, evaluation_result=out),
        ),
        "pipeline": (run_pipeline, [str(pipeline), "--output", str(out), "--set", *given]),
    }


@pytest.mark.parametrize("component", ["import", "preprocess", "finetune", "evaluation", "pipeline"])
def test_every_component_refuses_a_folder_in_use(component: str, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main, argv = commands(prepared, tmp_path, out)[component]
    with another_run(out) as other:
        before = {path: value for path, value in content(tmp_path).items() if not path.endswith(LOCK)}
        with pytest.raises(StorageError) as caught:
            main(argv)
        said = str(caught.value)
        assert f"{out} is in use by another run" in said and f"process {other.pid} on" in said, said
        assert f"rm {out / LOCK}" in said
        after = {path: value for path, value in content(tmp_path).items() if not path.endswith(LOCK)}
        assert after == before
        assert not (tmp_path / "pytorch").exists()  # made for this run, and empty


def test_a_killed_run_holds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with another_run(tmp_path) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert (tmp_path / LOCK).exists()
        with held({tmp_path: "--output_dir"}):
            found = Holder.of((tmp_path / LOCK).read_bytes())
            assert found is not None and found.process == os.getpid() and found.runs()
    assert f"was held by a run that is gone: -c, process {other.pid}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_a_process_that_is_gone_may_be_that_of_another(tmp_path: Path) -> None:
    mine = Holder.here()
    elsewhere(tmp_path, machine=mine.machine, process=os.getpid(), begun=mine.begun - 60)
    with held({tmp_path: "--output_dir"}):
        pass


@pytest.mark.usefixtures("quick")
def test_a_run_elsewhere_that_shows_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = elsewhere(tmp_path)
    sleep = time.sleep

    def beat_meanwhile(seconds: float) -> None:
        sleep(seconds)
        elsewhere(tmp_path, beat="000000000001")

    monkeypatch.setattr(time, "sleep", beat_meanwhile)
    with pytest.raises(StorageError, match=r"run.py, process 1 on node-7, since"), held({tmp_path: "--output_dir"}):
        pass
    assert lock.exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("empty", [False, True])
def test_a_run_elsewhere_that_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: bool) -> None:
    lock = elsewhere(tmp_path)
    if empty:  # it was cut off between the making of the file and its content
        lock.write_bytes(b"")
    began = time.monotonic()
    with held({tmp_path: "--output_dir"}):
        assert time.monotonic() - began >= timing.SILENT
    said = capsys.readouterr().out
    assert f"for a sign of life of the run that holds {tmp_path}" in said
    assert ("unnamed" if empty else "node-7") in said


@pytest.mark.usefixtures("quick")
def test_the_heart_beats_in_place(tmp_path: Path) -> None:
    with held({tmp_path: "--output_dir"}):
        first = (tmp_path / LOCK).read_bytes()
        beats = set()
        until = time.monotonic() + 10
        while len(beats) < 4 and time.monotonic() < until:
            found = Holder.of((tmp_path / LOCK).read_bytes())
            assert found is not None and replace(found, beat="000000000000") == Holder.of(first)
            beats.add(found.beat)
    assert len(beats) >= 4


@pytest.mark.usefixtures("quick")
def test_what_was_taken_over_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed([Output("--output_dir", tmp_path, ("model/",))]):
        lock = elsewhere(tmp_path)
        with pytest.raises(StorageError, match="was taken over by another run"):
            clear(tmp_path, ("model/",))
        until = time.monotonic() + 10
        while "has taken" not in capsys.readouterr().out:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert lock.exists()  # it is the other's
    lock.unlink()
    refuse_if_lost(tmp_path)


@pytest.mark.parametrize("text", ["mine", "{}", "[]", '{"token": 1}', "\udcff", "[" * 10**5])
def test_a_file_of_that_name_that_is_not_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text, errors="surrogateescape")
    before = content(tmp_path)
    with pytest.raises(StorageError, match=f"holds a {LOCK} that is not ours"), held({tmp_path: "--output_dir"}):
        pass
    assert content(tmp_path) == before


RACE = """
import sys, time
from pathlib import Path
from finetune.core import timing
from finetune.core.errors import StorageError
from finetune.core.lock import held
timing.LOCK_POLL = 0.001
folder, diary = map(Path, sys.argv[1:])
while not (diary / "go").exists():
    pass
count = 0
while count < 10:
    try:
        with held({folder: "--output_dir"}):
            (diary / "in").touch(exist_ok=False)  # fails where another is in
            time.sleep(0.001)
            (diary / "in").unlink()
            with (diary / "times").open("a") as file:
                file.write(".")
            count += 1
    except StorageError:
        time.sleep(0.001)
"""


def test_of_many_runs_that_begin_at_once_one_is_in(tmp_path: Path) -> None:
    folder, diary = tmp_path / "out", tmp_path / "diary"
    diary.mkdir()
    here = Holder.here()
    elsewhere(folder, machine=here.machine, process=2**22 + 1)  # that of a run that is gone, for all to find at once
    argv = [sys.executable, "-c", RACE, str(folder), str(diary)]
    runs = [subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    time.sleep(1)
    (diary / "go").touch()
    assert [run.communicate(timeout=120)[1] for run in runs] == [""] * len(runs)
    assert len((diary / "times").read_text()) == 10 * len(runs)
    assert list(folder.iterdir()) == []
