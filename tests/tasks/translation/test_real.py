"""A model of random weights learns real sentences, as far as minutes on a CPU let it."""

import json
from pathlib import Path

import mlflow
import pytest
from pyarrow import parquet

from examples.scratch_model import make_model, make_tokenizer
from finetune import pipeline
from tests.conftest import ROOT

STEPS, LOOKS, LEAST = 1500, 3, 4.0
SETTINGS = {
    "source_lang": "en",
    "target_lang": "de",
    "max_target_length": 48,
    "max_eval_samples": 500,
    "max_steps": STEPS,
    "per_device_train_batch_size": 48,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-3,
    "warmup_steps": 150,
    "adam_beta2": 0.98,
    "label_smoothing_factor": 0.1,
    "attn_implementation": "eager",
    "evaluation_strategy": "steps",
    "eval_steps": STEPS // LOOKS,
    "save_total_limit": 1,
    "metric_for_best_model": "bleu",
}


@pytest.mark.slow
@pytest.mark.thorough
def test_bleu_rises_on_tatoeba(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """English to German: what docs/results.md says, and better at each look than at the one before."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # so that the runs of the store are those of this pipeline
    tatoeba = real_data / "translation" / "tatoeba_en_de"
    rows = parquet.read_table(tatoeba / "train.parquet")
    texts = [text for language in ("en", "de") for text in rows[language].to_pylist()]
    tokenizer = make_tokenizer(texts, vocabulary=8000, longest=64, unigram=True)
    make_model(tmp_path / "model", tokenizer, width=192, layers=(3, 2))
    files = {"train": "train", "validation": "validation", "test": "validation"}
    values = {f"{split}_file_path": tatoeba / f"{name}.parquet" for split, name in files.items()}
    words = {
        name: str(value) for name, value in (values | SETTINGS | {"pytorch_model_path": tmp_path / "model"}).items()
    }
    output = tmp_path / "out"
    pipeline.run(pipeline.Words(ROOT / "components" / "translation" / "pipeline.yaml", output, words, force=False))

    client = mlflow.MlflowClient(f"sqlite:///{output}/mlflow.db")
    histories = [client.get_metric_history(found.info.run_id, "eval_bleu") for found in client.search_runs(["0"])]
    (looks,) = ([entry.value for entry in history] for history in histories if len(history) == LOOKS)
    assert looks == sorted(looks) and looks[0] < looks[-1]
    metrics = json.loads((output / "evaluation_result" / "metrics.json").read_text())
    print("BLEU", looks, metrics["bleu"], "chrF", metrics["chrf"])
    assert metrics["bleu"] > LEAST
