"""The evaluation component: what it refuses, and that its memory does not grow with the rows."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from finetune import evaluation
from finetune.core.errors import DataError, HandoffError, ModelError, ParameterError
from finetune.models import prediction
from tests.conftest import build_tiny_model, peaks, sample_rows, write_jsonl

TASK = ["--task", "question_answering"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no --preprocess_output or --test_data"),
        (["--test_data", "a", "--preprocess_output", "b", "--pytorch_model_folder", "c"], "are both given"),
        (["--test_data", "a"], "no --mlflow_model_folder, --pytorch_model_folder or --openvino_model_folder"),
        (
            ["--test_data", "a", *(f"--{kind}_model_folder=b" for kind in ("mlflow", "pytorch", "openvino"))],
            "--mlflow_model_folder, --pytorch_model_folder and --openvino_model_folder are all given",
        ),
    ],
)
def test_one_source_and_one_model(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=said):
        evaluation.main([*TASK, *words, "--evaluation_result", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "fix"), [(8, "--per_device_eval_batch_size 4"), (1, "a machine with more memory")])
def test_memory_runs_out(
    batch: int, fix: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(prediction, "predict", full)
    rows = write_jsonl(tmp_path / "rows.jsonl", sample_rows("test")[:2])
    words = [
        "--test_data",
        str(rows),
        "--pytorch_model_folder",
        str(tiny_model),
        "--evaluation_result",
        str(tmp_path / "out"),
    ]
    with pytest.raises(ModelError, match=f"memory runs out with {batch} windows at a time\n  fix: {fix}"):
        evaluation.main([*TASK, *words, "--per_device_eval_batch_size", str(batch)])


def test_file_without_a_usable_row(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": "", "context": "text"}])
    words = ["--test_data", str(rows), "--pytorch_model_folder", str(tiny_model)]
    with pytest.raises(DataError, match="no question"):
        evaluation.main([*TASK, *words, "--evaluation_result", str(tmp_path / "out")])


@pytest.mark.slow
def test_problems_of_the_test_split_are_told(prepared: Path, tmp_path: Path) -> None:
    """What preprocess dropped of the test split is missing from the score, so metrics.json and the report say so."""
    shutil.copytree(prepared / "data", tmp_path / "data")
    file = tmp_path / "data" / "preprocess.json"
    record = json.loads(file.read_text())
    problems = {"no question": {"action": "dropped", "count": 7, "rows": [1, 2]}}
    record["splits"]["test"]["problems"] = problems
    file.write_text(json.dumps(record))
    words = ["--preprocess_output", str(tmp_path / "data"), "--pytorch_model_folder", str(prepared / "model" / "model")]
    evaluation.main([*TASK, *words, "--evaluation_result", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["problems"] == problems
    assert "dropped 7: no question" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_what_rows_of_a_file_cannot_be_answered_is_told(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        *sample_rows("test")[:2],
        {"question": "why " * 300, "context": "It was Ada.", "answers": {"text": ["Ada"], "answer_start": [7]}},
        {"question": "Who?", "context": "It was Ada.", "answers": {"text": ["Grace"], "answer_start": [7]}},
        {"question": "Who?", "context": "so " * 99, "answers": {"text": ["so " * 49 + "so"], "answer_start": [0]}},
        {"question": "What?", "context": "a \u200e b", "answers": {"text": ["\u200e"], "answer_start": [2]}},
        {"question": "why " * 300, "context": "Nobody looked."},
    ]
    words = ["--test_data", str(write_jsonl(tmp_path / "rows.jsonl", rows)), "--pytorch_model_folder", str(tiny_model)]
    evaluation.main([*TASK, *words, "--evaluation_result", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (record["rows"], record["rows_dropped"], record["rows_without_answers"]) == (6, 1, 1)
    found = {tuple(problem["rows"]): reason for reason, problem in record["problems"].items()}
    assert found.keys() == {(4,), (3, 7), (5,), (6,)}
    assert found[4,] == "the answer is not in the context"
    assert found[3, 7].startswith("the question is too long") and found[3, 7].endswith("so its prediction is empty")
    assert "longer than max_answer_length_in_tokens 30" in found[5,]
    shown, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    assert all(reason in shown and reason.split("'")[0] in page for reason in found.values())


@pytest.mark.slow
def test_gold_classes_that_the_model_lacks_are_told(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertConfig, BertForTokenClassification

    shutil.copytree(tiny_model, tmp_path / "model")
    names = {"id2label": {0: "B-person", 1: "O"}, "label2id": {"B-person": 0, "O": 1}}
    config = BertConfig.from_pretrained(tiny_model, **names)
    BertForTokenClassification(config).save_pretrained(tmp_path / "model")
    rows = [{"tokens": ["Ada", "in", "Oslo", "Fjord"], "ner_tags": ["B-person", "O", "B-TOWN", "I-TOWN"]}] * 3
    words = ["--task", "token_classification", "--test_data", str(write_jsonl(tmp_path / "rows.jsonl", rows))]
    words += ["--pytorch_model_folder", str(tmp_path / "model"), "--evaluation_result", str(tmp_path / "out")]
    evaluation.main(words)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["classes_lacking"] == {"B-TOWN": 3, "I-TOWN": 3}
    said = "warning: 6 gold words can't be right, the model has no such class: B-TOWN (3), I-TOWN (3)"
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_damaged_record_of_training(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "training.json").write_text("{")
    rows = write_jsonl(tmp_path / "rows.jsonl", sample_rows("test")[:2])
    words = ["--test_data", str(rows), "--pytorch_model_folder", str(tmp_path / "model")]
    with pytest.raises(HandoffError, match=r"training.json is damaged"):
        evaluation.main([*TASK, *words, "--evaluation_result", str(tmp_path / "out")])


@pytest.mark.slow
def test_kept_batches_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", sample_rows("test")[:40])
    found = []
    for kept in (1, 7):
        words = [
            "--test_data",
            str(rows),
            "--pytorch_model_folder",
            str(tiny_model),
            "--eval_accumulation_steps",
            str(kept),
        ]
        evaluation.main(
            [*TASK, *words, "--evaluation_result", str(tmp_path / str(kept)), "--per_device_eval_batch_size", "4"]
        )
        found.append((tmp_path / str(kept) / "predictions.jsonl").read_text())
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.thorough
def test_memory_does_not_grow_with_rows(real_data: Path, tmp_path: Path) -> None:
    import pandas as pd

    model = tmp_path / "model"
    model.mkdir()
    build_tiny_model(model, max_position_embeddings=384)
    rows = pd.read_parquet(real_data / "squad_v1" / "validation.parquet")
    few = rows.iloc[:: len(rows) // 300][:300]
    few.to_parquet(tmp_path / "few.parquet")
    assert len(rows) == 3438
    code = """
import sys
from finetune.evaluation import main
*words, few, all_rows = sys.argv[1:]
for file in few, all_rows:
    main([*words, file])
    print(peak())
"""
    words = [*TASK, "--pytorch_model_folder", str(model), "--evaluation_result", str(tmp_path / "out"), "--test_data"]
    files = (tmp_path / "few.parquet", real_data / "squad_v1" / "validation.parquet")
    few_peak, all_peak = (peak / 2**20 for peak in peaks(code, *words, *map(str, files)))
    assert all_peak - few_peak < 300
