"""`finetune check` through its command line, and as the beginning of `finetune pipeline`."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from finetune import check
from finetune.azure.pipeline_yaml import load_pipeline
from finetune.azure.plan import prepare, read_words
from finetune.core.errors import DataError, FinetuneError, ParameterError, UnsupportedError
from finetune.core.world import World
from finetune.models import estimate
from finetune.params.components import TASKS
from finetune.params.schema import LOCAL_OR_HUB, SECRETS
from finetune.pipeline import main as run_pipeline
from tests.conftest import ROOT, SAMPLES, sample_rows, write_jsonl

PIPELINE = str(ROOT / "components" / "question_answering" / "pipeline.yaml")


def words(tiny_model: Path, **values: Any) -> list[str]:
    given = {
        "pytorch_model_path": tiny_model,
        "train_file_path": SAMPLES / "question_answering" / "train.jsonl",
        **values,
    }
    return [PIPELINE, "--set", *(f"{name}={value}" for name, value in given.items())]


def test_what_a_run_will_do(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words(
        tiny_model, max_seq_length=96, doc_stride=24, num_train_epochs=2, per_device_train_batch_size=8, eval_steps=3
    )
    check.main(given)
    shown = capsys.readouterr().out
    rows = len(sample_rows("train"))
    assert "max_seq_length 96" in shown
    assert "eval_steps 3 has no effect with evaluation_strategy epoch" in shown
    assert "model: bert, 2 layers" in shown
    assert sum(map(int, re.findall(r"(?:train|validation|test): (\d+) rows", shown))) == rows
    assert "10% of the training rows each" in shown
    assert "over 96" in shown
    assert "several windows" in shown
    assert "memory: about 0." in shown
    assert "time: about " in shown


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("value", ["--help", "-h", "--task=other", "-1"])
def test_values_reach_the_steps_as_they_are(value: str, task: str, tiny_model: Path, tmp_path: Path) -> None:
    """Whatever a text begins with, no step takes it for a parameter."""
    pipeline = load_pipeline(ROOT / "components" / task / "pipeline.yaml")
    own = {f"train_file_path={SAMPLES / task / 'train.jsonl'}", f"pytorch_model_path={tiny_model}"}
    texts = {name for name, p in pipeline.inputs.items() if p.kind == "string" and not p.enum}
    texts = {
        name
        for name in texts - {*LOCAL_OR_HUB, *SECRETS, "shm_size_finetune"}
        if not name.startswith(("compute", "inst"))
    }
    given = read_words(["x.yaml", "--set", *own, *(f"{name}={value}" for name in texts)], tmp_path / "out")
    prepared, faults = prepare(pipeline, given.values, tmp_path / "out")
    steps = check.settle_steps(check.commands_of(prepared), faults)
    assert texts and steps.keys() == {"model_import", "datapreprocess", "finetune", "evaluation"}
    seen = [vars(step.settled.params).get(name) for step in steps.values() for name in texts]
    assert set(seen) == {None, value} and seen.count(value) >= len(texts)


def test_steps_are_those_of_the_run(prepared: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer rows than the sample: the expected windows are exact."""
    train = write_jsonl(prepared / "t.jsonl", sample_rows("train")[:48])
    validation = write_jsonl(prepared / "v.jsonl", sample_rows("validation")[:12])
    files = {"train_file_path": train, "validation_file_path": validation, "test_file_path": validation}
    check.main(words(tiny_model, **files, max_seq_length=128, doc_stride=32, per_device_train_batch_size=4))
    windows = json.loads((prepared / "data" / "preprocess.json").read_text())["splits"]["train"]["windows"]
    assert f"steps: {-(-windows // 4)} of 4 windows, about {windows} windows in an epoch" in capsys.readouterr().out


def test_what_cannot_be_learnt_or_predicted(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sample_rows("train")[:40]
    rows[0]["question"] = "who " * 90
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    files = {f"{split}_file_path": file for split in ("train", "validation", "test")}
    check.main(words(tiny_model, **files, max_seq_length=96, doc_stride=24, max_answer_length_in_tokens=1))
    shown = capsys.readouterr().out
    assert "  2.5%: the question is too long beside doc_stride 24 tokens of context in a window" in shown
    assert re.search(r"\n\d+ of 39 gold answers \(.*\) are longer than max_answer_length_in_tokens \(1\)", shown)


def faults_of(given: list[str], kind: type[FinetuneError] = ParameterError) -> str:
    with pytest.raises(kind) as caught:
        check.main(given)
    return str(caught.value)


def test_all_faults_of_all_steps_at_once() -> None:
    told = faults_of(
        [PIPELINE, "--set", "learning_rate=-1", "num_epochs=3", "apply_fsdp=true", "max_dropped_fraction=3"]
    )
    for part in (
        "learning_rate=-1 must be at least 0",
        "did you mean num_train_epochs?",
        "max_dropped_fraction=3 must be at most 1",
        "no model is given",
        "there are no training rows",
        "--apply_fsdp true",
    ):
        assert part in told


def test_unsupported_is_told_before_any_data_are_read(tiny_model: Path) -> None:
    given = words(tiny_model, train_file_path=Path(__file__), apply_fsdp="true")
    assert "--apply_fsdp true" in faults_of(given, UnsupportedError)


def test_faults_of_all_files_at_once(tiny_model: Path, tmp_path: Path) -> None:
    files = {f"{split}_file_path": tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")}
    files["train_file_path"].write_text("oops\n")
    files["validation_file_path"].write_text('{"question": "q"}\n')
    write_jsonl(files["test_file_path"], sample_rows("test")[:2])
    told = faults_of(words(tiny_model, **files), DataError)
    assert "not valid JSON" in told
    assert "no column 'context'" in told


def test_no_evaluation_inside_the_run(tiny_model: Path) -> None:
    told = faults_of(words(tiny_model, evaluation_strategy="steps", eval_steps=5000))
    assert "the run would end before its first evaluation" in told


def test_a_model_that_cannot_be_finetuned_so(tiny_model: Path) -> None:
    assert "fp16 needs a GPU" in faults_of(words(tiny_model, precision="16"), UnsupportedError)
    told = faults_of(words(tiny_model, apply_fsdp="true", number_of_gpu_to_use_finetuning=2), UnsupportedError)
    assert "no GPU is visible here" in told


def test_a_deepspeed_config(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    config = tmp_path / "zero.json"
    config.write_text('{"zero_optimization": {"stage": 2}, "gradient_cliping": 1}')
    told = faults_of(words(tiny_model, apply_deepspeed="true", deepspeed=config))
    assert "DeepSpeed has no key 'gradient_cliping'; did you mean gradient_clipping?" in told


def test_weights_are_not_loaded(tiny_model: Path, tmp_path: Path) -> None:
    """A model folder passes whose weights are junk below their header."""
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        head = 8 + int.from_bytes(file.read(8), "little")
        size = file.seek(0, 2)
        file.seek(head)
        file.write(b"\xff" * (size - head))
    check.main(words(tmp_path, max_seq_length=96))


def test_a_warning_where_memory_is_short(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.models.estimate.available_bytes", lambda: 1_000_000)
    check.main(words(tiny_model, max_seq_length=96, per_device_train_batch_size=8))
    assert "warning: that may not fit; --per_device_train_batch_size 4" in capsys.readouterr().out


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a process and a half."""
    wanted: list[int] = []
    counted = estimate.estimate

    def noted(*given: Any) -> estimate.Estimate:
        need = counted(*given)
        wanted.append(need.state_bytes + need.activation_bytes)
        return need

    monkeypatch.setattr(estimate, "estimate", noted)
    monkeypatch.setattr(estimate, "available_bytes", lambda: wanted[-1] * 3 // 2)


@pytest.mark.parametrize(
    ("nodes", "on_each", "gpus", "warned"),
    [(1, 1, False, False), (2, 1, False, False), (1, 2, False, True), (2, 2, False, True), (1, 2, True, False)],
)
def test_memory_is_that_of_a_machine_or_of_a_gpu(
    nodes: int, on_each: int, gpus: bool, warned: bool, tiny_model: Path, free: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(World, "has_gpu", lambda self: gpus)
    given = {"num_nodes_finetune": nodes, "number_of_gpu_to_use_finetuning": on_each}
    check.main(words(tiny_model, max_seq_length=96, per_device_train_batch_size=8, **given))
    assert ("warning: that may not fit" in capsys.readouterr().out) == warned


def test_another_step_that_names_finetune_in_its_words(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It comes first and has other processes; and a folder of model import has the name too."""
    train = SAMPLES / "question_answering" / "train.jsonl"
    folders = "--model_selector_output M --output_dir /tmp/finetune.run/out"
    commands = [
        ("python tell.py --about finetune.run", World(7, 7)),
        (f"python -m finetune.model_selector --task question_answering --pytorch_model_path {tiny_model} "
         "--output_dir /tmp/finetune.run", World(5, 5)),
        (f"python -m finetune.preprocess --task question_answering --train_file_path {train} {folders}", World()),
        ("python -m finetune.run --task question_answering --preprocess_output P --model_selector_output M "
         "--pytorch_model_folder O --mlflow_model_folder L --per_device_train_batch_size 4", World(2, 2)),
    ]  # fmt: skip
    check.check(commands, [])
    assert re.search(r"steps: \d+ of 8 windows", capsys.readouterr().out)


def test_a_pipeline_begins_with_the_check(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A fault of the last step's data ends the run before the first step."""
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"q": "?", "context": "c"}])
    with pytest.raises(SystemExit) as end:
        run_pipeline([*words(tiny_model, test_file_path=bad), "--output", str(tmp_path / "out")])
    assert end.value.code == DataError.exit_code
    assert "no column 'question'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.thorough
def test_fast_enough_for_100_000_rows(tiny_model: Path, tmp_path: Path) -> None:
    rows = sample_rows("train")
    many = [{**rows[i % len(rows)], "id": str(i)} for i in range(100_000)]
    file = write_jsonl(tmp_path / "many.jsonl", many)
    started = time.perf_counter()
    check.main(words(tiny_model, train_file_path=file, per_device_train_batch_size=16))
    assert time.perf_counter() - started < 60  # 10 on an idle machine; see docs/results.md
