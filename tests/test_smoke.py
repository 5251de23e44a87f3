"""The whole chain in one process, on a tiny model: argv -> folders -> model -> proof -> scores."""

import json
from pathlib import Path

import pytest

from finetune import evaluation, run
from tests.conftest import finetune_words

pytestmark = pytest.mark.slow


def test_chain(prepared: Path, tmp_path: Path) -> None:
    run.main(finetune_words(prepared, tmp_path, per_device_train_batch_size=8, learning_rate=1e-3, num_train_epochs=2))
    words = ["--task", "question_answering", "--preprocess_output", str(prepared / "data")]
    words += ["--mlflow_model_folder", str(tmp_path / "mlflow"), "--evaluation_result", str(tmp_path / "scores")]
    evaluation.main(words)
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["total"] == 12
    assert len((tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()) == 12
    assert {path.name for path in (tmp_path / "pytorch").glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-12"}
