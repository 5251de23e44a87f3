"""The commands as a user types them: --help at once, one exit code per error class, no traceback for a user's slip."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import finetune
from finetune.__main__ import COMMANDS
from finetune.core.errors import (
    DataError,
    Fault,
    FinetuneError,
    HandoffError,
    ModelError,
    ParameterError,
    PeerError,
    ServiceError,
    StepError,
    StoppedError,
    StorageError,
    UnsupportedError,
)
from finetune.core.process import run_main
from finetune.distributed.settlement import Settled, settle_task
from finetune.params.evaluation import QuestionAnsweringEvaluationParams
from finetune.params.finetune import QuestionAnsweringParams
from finetune.params.schema import params_of

SRC = Path(finetune.__file__).parents[1]
HEAVY = {"azure", "torch", "transformers", "datasets", "mlflow", "pandas", "numpy", "pyarrow", "peft", "accelerate"}
HEAVY |= {"onnx", "onnxruntime"}
TASK = ["--task", "question_answering"]
FOLDERS = ["--preprocess_output", "p", "--model_selector_output", "m"]
FOLDERS += ["--pytorch_model_folder", "out/pytorch", "--mlflow_model_folder", "out/mlflow"]


def python(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(SRC), **environment}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", check=False
    )


def exit_code(error: BaseException) -> int:
    def main(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as raised:
        run_main(main, [])
    assert isinstance(raised.value.code, int)
    return raised.value.code


@pytest.mark.parametrize("words", [["finetune", "--help"], ["finetune.run", "--help"]], ids=" ".join)
def test_help_is_instant(words: list[str]) -> None:
    """In seconds of the processor, whatever else it does."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = python("-m", *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("usage: ")
    assert min(seconds) < 1


@pytest.mark.parametrize("module", ["finetune", *(module for module, _ in COMMANDS.values())])
def test_help_imports_nothing_heavy(module: str) -> None:
    result = python("-X", "importtime", "-m", module, "--help")
    assert result.returncode == 0
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", result.stderr, flags=re.MULTILINE))
    assert "finetune.core.errors" in imported
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()


def test_help_lists_every_command() -> None:
    for words in ([], ["-h"]):
        result = python("-m", "finetune", *words)
        assert result.returncode == 0
        assert re.findall(r"^  (\w+) ", result.stdout, flags=re.MULTILINE) == list(COMMANDS)


def test_help_of_run_names_every_parameter() -> None:
    for words in (["-m", "finetune.run", *TASK, "--help"], ["-m", "finetune", "run", "-h"]):
        text = python(*words).stdout
        assert text.startswith("usage: python -m finetune.run --task question_answering")
        assert [p.name for p in params_of(QuestionAnsweringParams) if f"\n  --{p.name} " not in text] == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FinetuneError, 1),
        (ParameterError, 2),
        (DataError, 3),
        (HandoffError, 4),
        (ModelError, 5),
        (UnsupportedError, 6),
        (StepError, 7),
        (StorageError, 8),
        (StoppedError, 9),
        (PeerError, 10),
        (ServiceError, 11),
    ],
)
def test_exit_codes(error: type[FinetuneError], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(error(Fault("first", where="here", why="so", fix="this"), Fault("second"))) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (f"{error.title}: first\n  where: here\n  why: so\n  fix: this\n{error.title}: second\n")


def test_every_error_class_has_its_own_code_and_title() -> None:
    classes = FinetuneError.__subclasses__()
    assert len(classes) == 10
    assert len({c.exit_code for c in classes} | {1}) == len({c.title for c in classes} | {"error"}) == 11


def test_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


ENDS = """
import atexit, sys, threading, time
from finetune.core.errors import Fault, StoppedError
from finetune.core.process import run_main

def main(argv):
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    atexit.register(print, "at exit")
    print("to the end", end="")
    if argv:
        raise StoppedError(Fault("stopped"))

run_main(main)
print("never")
"""


@pytest.mark.parametrize(("words", "code"), [((), 0), (("word",), 9)])
def test_a_process_ends_with_its_entry_point(words: tuple[str, ...], code: int) -> None:
    """After its threads and what is registered for its end, and with all that it has printed."""
    ended = python("-c", ENDS, *words)
    assert (ended.returncode, ended.stdout) == (code, "to the endthread\nat exit\n")
    assert ended.stderr == ("stopped: stopped\n" if code else "")


def test_an_unexpected_error_is_not_swallowed() -> None:
    def main(argv: list[str]) -> None:
        raise KeyError(argv[0])

    with pytest.raises(KeyError, match="word"):
        run_main(main, ["word"])


@pytest.mark.parametrize(
    ("words", "code", "lines"),
    [
        (["finetune", "rum"], 2, ["parameter error: unknown command 'rum'; did you mean run?"]),
        (
            ["finetune.run"],
            2,
            [
                "parameter error: --task is missing",
                "  fix: --task question_answering | generative_question_answering | token_classification | translation",
            ],
        ),
        (
            ["finetune.run", "--task", "question_answer"],
            2,
            ["parameter error: unknown task 'question_answer'; did you mean question_answering?"],
        ),
        (
            ["finetune.run", *TASK, *FOLDERS, "--learning_rte", "1e-4", "--seed", "x"],
            2,
            [
                "parameter error: unknown parameter --learning_rte; did you mean --learning_rate?",
                "parameter error: --seed 'x' must be an integer",
            ],
        ),
        (
            ["finetune.run", *TASK, *FOLDERS],
            2,
            [
                "parameter error: --preprocess_output p is not there",
                "parameter error: --model_selector_output m is not there",
            ],
        ),
        (
            ["finetune", "run", *TASK, *FOLDERS, "--apply_fsdp", "True"],
            6,
            ["not supported: --apply_fsdp true"],
        ),
    ],
    ids=["command", "no task", "task", "parameters", "folders", "unsupported"],
)
def test_user_errors_have_no_traceback(words: list[str], code: int, lines: list[str], tmp_path: Path) -> None:
    result = python("-m", *words, cwd=tmp_path)
    assert result.returncode == code
    assert [line for line in lines if line not in result.stderr.splitlines()] == []
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_request(tmp_path: Path) -> None:
    result = python("-m", "finetune", "rum", cwd=tmp_path, FINETUNE_TRACEBACK="1")
    assert result.returncode == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("declare\n")


@pytest.mark.parametrize(
    "words",
    [
        ["--task", "question_answering", "--seed", "7", "--evaluation_result", "out"],
        ["--seed", "7", "--task=question_answering", "--evaluation_result", "out"],
        ["--seed=7", "--evaluation_result", "out", "--task", "question_answering"],
    ],
)
def test_task_may_stand_anywhere(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test_data").touch()
    Path("pytorch_model_folder").mkdir()
    given = {name: Path(name) for name in ("test_data", "pytorch_model_folder")}
    words += [word for name in given for word in (f"--{name}", name)]
    expected = QuestionAnsweringEvaluationParams(seed=7, evaluation_result=Path("out"), **given)
    task, settled = settle_task(words, "evaluation", "finetune.evaluation")
    assert (task, settled) == ("question_answering", Settled(expected, expected, (), None, ()))


def test_a_task_without_its_name_is_missing() -> None:
    with pytest.raises(ParameterError, match="--task is missing"):
        settle_task(["--seed", "7", "--task"], "evaluation", "finetune.evaluation")
