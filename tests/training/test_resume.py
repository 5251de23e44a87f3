"""A run that is killed and goes on ends with the weights of one that wasn't."""

import json
import re
import signal
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from finetune import run
from finetune.core.errors import ParameterError
from finetune.params.finetune import FIXED_ON_RESUME
from finetune.training.checkpoints import COMPLETE
from finetune.training.resume import Marker, refuse_other_run
from tests.conftest import finetune_words
from tests.forking import Forks
from tests.launching import launch, one_thread

pytestmark = pytest.mark.slow
CADENCE = 10
STEPS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "num_train_epochs": 2,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": CADENCE,
    "logging_strategy": "steps",
    "logging_steps": 1,
}


def words(prepared: Path, output: Path, resume: str = "false") -> list[str]:
    return finetune_words(prepared, output, **STEPS, resume_from_checkpoint=resume)


def steps(lines: list[str]) -> list[tuple[int, int]]:
    """(step, steps in all) of every line that logs a training loss."""
    found = (re.match(r"step (\d+)/(\d+) .*gradient norm", line) for line in lines)
    return [(int(match[1]), int(match[2])) for match in found if match]


def complete(folder: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*/complete"))


def killed(forks: Forks, folder: Path, argv: list[str], after: int) -> list[str]:
    """What a run has said when it is killed, once it has logged a step beyond this one."""
    process = launch(folder, argv, "alone", forks=forks)

    def logged() -> list[tuple[int, int]]:
        return steps(process.said().splitlines())

    process.until(lambda: logged() and logged()[-1][0] > after)
    process.send(0, signal.SIGKILL)
    assert process.codes() == [-signal.SIGKILL], process.said()
    return process.said().splitlines(keepends=True)


@pytest.mark.thorough
def test_killed_in_mid_epoch(forks: Forks, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_thread():
        run.main(words(prepared, tmp_path / "unbroken"))
    said = capsys.readouterr().out
    (_, total), *_ = reached = steps(said.splitlines())
    assert len(reached) == total and total // 2 > 2 * CADENCE

    lines = killed(forks, tmp_path, words(prepared, tmp_path / "broken"), CADENCE + 2)  # far from the next checkpoint
    folder = tmp_path / "broken" / "pytorch"
    last = steps(lines)[-1][0]
    assert complete(folder) == [CADENCE] and CADENCE < last < 2 * CADENCE < total // 2
    assert not (folder / "model.safetensors").exists()
    with zipfile.ZipFile(folder / f"checkpoint-{CADENCE}" / "optimizer.pt") as optimizer:
        assert optimizer.testzip()  # without the checksums of a zip file: COMPLETE has a better one

    with one_thread():
        run.main(words(prepared, tmp_path / "broken", resume="true"))
    said = capsys.readouterr().out
    assert f"going on from checkpoint-{CADENCE}\n" in said
    assert [step for step, _ in steps(said.splitlines())] == list(range(CADENCE + 1, total + 1))
    for name in ("model.safetensors", f"checkpoint-{max(complete(folder))}/model.safetensors"):
        wanted, got = ((tmp_path / run / "pytorch" / name).read_bytes() for run in ("unbroken", "broken"))
        assert got == wanted, name


def test_the_same_command_thrice_killed_twice(
    forks: Forks, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a platform runs it again after each eviction, with nothing said about going on."""
    argv = words(prepared, tmp_path / "evicted")
    assert "was interrupted" not in "".join(killed(forks, tmp_path, argv, CADENCE + 2))
    again = killed(forks, tmp_path, [*argv, "--hang_timeout", "60"], 2 * CADENCE + 2)  # which changes no weight
    assert f"this run was interrupted after checkpoint-{CADENCE} " in "".join(again)
    assert steps(again)[0][0] == CADENCE + 1
    with one_thread():
        run.main(argv)
        said = capsys.readouterr().out
        assert f"this run was interrupted after checkpoint-{2 * CADENCE} " in said
        assert steps(said.splitlines())[0][0] == 2 * CADENCE + 1
        run.main(words(prepared, tmp_path / "unbroken"))
    weights = [(tmp_path / name / "pytorch" / "model.safetensors").read_bytes() for name in ("evicted", "unbroken")]
    assert weights[0] == weights[1]


def test_another_command_starts_anew(
    forks: Forks, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {**STEPS, "max_steps": 2, "eval_steps": 1}
    # Its first checkpoint has just been written, or will be in a moment.
    killed(forks, tmp_path / "log", words(prepared, tmp_path), CADENCE)
    for changed in ({}, {}, {"logging_steps": 2}):  # another, the same once it has ended, one that differs a little
        run.main(finetune_words(prepared, tmp_path, **{**quick, **changed}))
        said = capsys.readouterr().out
        assert "interrupted" not in said and "moved to earlier-run" in said


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (0, "8 windows in a step, this run has 16\n  why: that is per_device_train_batch_size x"),
        (96, "8 tokens in a step, this run has 16\n  why: that is max_tokens_per_batch x"),
    ],
)
def test_another_batch_is_told_in_what_it_is_counted_in(tokens: int, said: str, tmp_path: Path) -> None:
    parameters = {**dict.fromkeys(FIXED_ON_RESUME), "max_tokens_per_batch": tokens}
    was = Marker(5, "", "", "", 8, 3, [8, 1], [8, 1], 1, {}, parameters, {})
    (tmp_path / COMPLETE).write_text(json.dumps({"run": asdict(was)}))
    with pytest.raises(ParameterError) as refused:
        refuse_other_run(tmp_path, replace(was, global_batch=16), "question_answering")
    assert said in str(refused.value)
