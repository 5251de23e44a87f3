"""Answers that are written, through the command lines: the pipeline, what it leaves, what is served and resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from finetune import evaluation, pipeline, run
from tests.conftest import ROOT, finetune_words, prepare, sample_rows, write_jsonl
from tests.forking import Forks
from tests.tasks.generative_question_answering.conftest import build

pytestmark = pytest.mark.slow
YAML = ROOT / "components" / "generative_question_answering" / "pipeline.yaml"
TASK = "generative_question_answering"
LENGTHS = {"max_seq_length": 130, "doc_stride": 16, "max_answer_length": 40}
QUICK = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module", params=["t5", "qwen2"])
def output(request: pytest.FixtureRequest, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pipeline leaves, of an encoder-decoder, and its four steps by themselves, of a decoder."""
    folder = tmp_path_factory.mktemp(request.param)
    model = build(request.param, folder / "tiny")
    if request.param == "qwen2":
        return by_steps(folder, model)
    files = {
        f"{split}_file_path": write_jsonl(folder / f"{split}.jsonl", sample_rows(split, TASK)[:count])
        for split, count in {"train": 32, "validation": 8, "test": 6}.items()
    }
    values = {"pytorch_model_path": model, **files, **LENGTHS, **QUICK}
    words = {name: str(value) for name, value in values.items()}
    with forks.taken_for_python():
        pipeline.run(pipeline.Words(YAML, folder / "out", words, force=False))
    return folder / "out"


def by_steps(folder: Path, model: Path) -> Path:
    """In this process, into the folders that the pipeline has."""
    out = folder / "out"
    prepared = prepare(folder, model, TASK, (32, 8, 6), **LENGTHS)
    words = finetune_words(prepared, out, **QUICK)
    for name in ("pytorch", "mlflow"):
        words[words.index(f"--{name}_model_folder") + 1] = str(out / f"{name}_model_folder")
    run.main(words)
    scored = ["--task", TASK, "--preprocess_output", str(prepared / "data"), "--evaluation_result"]
    evaluation.main(
        [*scored, str(out / "evaluation_result"), "--mlflow_model_folder", str(out / "mlflow_model_folder")]
    )
    return out


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_metrics_and_report(output: Path) -> None:
    metrics = json.loads((output / "evaluation_result" / "metrics.json").read_text())
    assert {"exact", "f1", "exact_match", "f1_score", "gen_len"} <= metrics.keys() and metrics["rows"] == 6
    page = (output / "evaluation_result" / "report.html").read_text()
    assert sample_rows("test", TASK)[0]["question"] in page


def test_served_answers_are_those_of_evaluation(output: Path) -> None:
    found = predictions(output / "evaluation_result")
    rows = sample_rows("test", TASK)[:6]
    served = mlflow.pyfunc.load_model(str(output / "mlflow_model_folder"))
    asked = pd.DataFrame([{"question": row["question"], "context": row["context"]} for row in rows])
    answers = served.predict(asked)
    assert answers["answer"].tolist() == [p["text"] for p in found]
    assert answers["score"].tolist() == pytest.approx([p["score"] for p in found], abs=1e-4)
    withheld = served.predict(asked, params={"null_threshold": -1e9, "num_beams": 3})
    assert set(withheld["answer"]) == {""}


def test_it_answers_without_this_package(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the lines of its model card."""
    card = (output / "pytorch_model_folder" / "README.md").read_text()
    lines = card.partition("```python\n")[2].partition("```")[0]
    lines = lines.replace('"pytorch_model_folder"', repr(str(output / "pytorch_model_folder")))
    capsys.readouterr()
    exec(lines, {})
    assert capsys.readouterr().out.endswith("\n")


def test_resumed(tmp_path: Path) -> None:
    """A decoder: without the checkpoint of the second epoch, that epoch is run again, bit for bit."""
    prepared = prepare(tmp_path, build("gpt2", tmp_path / "tiny"), TASK, (32, 8, 6), **LENGTHS)
    words = {**QUICK, "num_train_epochs": 2}
    run.main(finetune_words(prepared, tmp_path / "whole", **words))
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    last = max((tmp_path / "broken" / "pytorch").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    shutil.rmtree(last)
    run.main(finetune_words(prepared, tmp_path / "broken", **words, resume_from_checkpoint="true"))
    assert (last / "complete").is_file()
    one, other = (load_file(tmp_path / name / "pytorch" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("family", ["bart", "llama"])
@pytest.mark.thorough
def test_unmerged_adapters(family: str, tmp_path: Path) -> None:
    prepared = prepare(tmp_path, build(family, tmp_path / "tiny"), TASK, (32, 8, 6), **LENGTHS)
    run.main(finetune_words(prepared, tmp_path, **QUICK, apply_lora="true", merge_lora_weights="false"))
    assert (tmp_path / "pytorch" / "adapter_model.safetensors").is_file()
    words = ["--task", TASK, "--preprocess_output", str(prepared / "data")]
    for name, port in (("pytorch", "--pytorch_model_folder"), ("mlflow", "--mlflow_model_folder")):
        evaluation.main([*words, port, str(tmp_path / name), "--evaluation_result", str(tmp_path / f"of_{name}")])
    one, other = ([p["span_text"] for p in predictions(tmp_path / f"of_{name}")] for name in ("pytorch", "mlflow"))
    assert one == other and any(one)
