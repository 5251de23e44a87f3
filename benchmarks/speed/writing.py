"""Evaluation of translation: what a model writes beside the stock loop, transformers' Seq2SeqTrainer.

A small T5 is trained on the bundled sample by the command line, so that what it writes is of different lengths. Both
ways take the same rows, batch, length and beams; they compute the loss, write, decode, and score with BLEU and chrF of
sacreBLEU. Encoding is not counted.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.harness import ROOT, Case, Meter, Way, Work
from benchmarks.speed.training import finetune

SAMPLE = ROOT / "examples" / "translation"
ROWS, BATCH, BEAMS = 64, 16, (1, 4)
SIZES = {"d_model": 128, "d_ff": 512, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
STEPS = {"max_steps": 120, "learning_rate": 3e-3, "per_device_train_batch_size": BATCH}
Evaluate = Callable[[], tuple[float, float]]  # returns loss and BLEU


def prepare(folder: Path) -> None:
    """Write the outputs of import, preprocess and finetune."""
    from tests.writers import build_writer

    task = "translation"
    lines = (SAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for name, part in (("train", lines[ROWS:]), ("validation", lines[:ROWS]), ("test", lines[:ROWS])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    files = {f"{name}_file_path": folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    tiny = build_writer("t5", folder / "tiny", **SIZES)
    finetune("model_selector", task, pytorch_model_path=tiny, output_dir=folder / "model")
    languages = {"source_lang": "en", "target_lang": "tav", "max_target_length": 64, "max_dropped_fraction": 1}
    ports = {"model_selector_output": folder / "model", "preprocess_output": folder / "data"}
    finetune(
        "preprocess", task, model_selector_output=folder / "model", **files, **languages, output_dir=folder / "data"
    )
    outputs = {"pytorch_model_folder": folder / "pytorch", "mlflow_model_folder": folder / "mlflow"}
    once = {"evaluation_strategy": "steps", "eval_steps": STEPS["max_steps"]}
    finetune("run", task, **ports, **outputs, **STEPS, **once)


def ours(folder: Path, beams: int) -> Evaluate:
    """Return what evaluates as `finetune` does in training."""
    from finetune.data.batches import as_windows, batches_by_length
    from finetune.data.folders import Preprocessed, read_rows
    from finetune.models.loading import load_model
    from finetune.models.prediction import predict
    from finetune.models.stored.configs import stored_state
    from finetune.models.stored.tokenizers import load_tokenizer
    from finetune.tasks.generation import targets
    from finetune.tasks.translation import TASK, pairs

    model_folder = folder / "pytorch"
    state, tokenizer = stored_state(model_folder, TASK), load_tokenizer(model_folder, TASK)
    assert isinstance(state, pairs.State)
    state = replace(state, num_beams=beams)
    model, _ = load_model(model_folder, TASK, state)
    rows = read_rows(Preprocessed.rows_file(folder / "data", "validation"))
    columns = pairs.encode(rows, tokenizer, state)
    windows = as_windows(columns | pairs.label(rows, columns, state)[0])

    def evaluate() -> tuple[float, float]:
        reduced, loss = predict(
            model, batches_by_length(windows, BATCH, targets.padding(tokenizer), "cpu"), TASK, state, 1
        )
        assert loss is not None
        found = TASK.scoring.metrics(TASK.decoding.decode(reduced, rows, state, tokenizer), rows, state)
        return loss, found["bleu"]

    return evaluate


def stock(folder: Path, beams: int) -> Evaluate:
    """Return what evaluates as transformers' examples do."""
    from datasets import Dataset
    from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    from finetune.data.folders import Preprocessed, read_rows
    from finetune.models.stored.configs import stored_state
    from finetune.models.stored.tokenizers import load_tokenizer
    from finetune.tasks.translation import TASK, metrics, pairs

    model_folder = folder / "pytorch"
    state, tokenizer = stored_state(model_folder, TASK), load_tokenizer(model_folder, TASK)
    assert isinstance(state, pairs.State)
    rows = read_rows(Preprocessed.rows_file(folder / "data", "validation"))
    gold = [row["target"] for row in rows]
    columns = pairs.encode(rows, tokenizer, state)
    data = {name: columns[name] for name in ("input_ids", "attention_mask")} | {"labels": columns["target_ids"]}
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(model_folder)
    model.generation_config.num_beams = beams

    def score(found: Any) -> dict[str, float]:
        ids = np.where(found.predictions < 0, tokenizer.pad_token_id, found.predictions)
        texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return metrics.corpus(texts, gold, state.target_lang)

    told = Seq2SeqTrainingArguments(
        output_dir=str(folder / "stock"),
        per_device_eval_batch_size=BATCH,
        predict_with_generate=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    rest: Any = {"eval_dataset": Dataset.from_dict(data), "processing_class": tokenizer, "data_collator": collator}
    trainer = Seq2SeqTrainer(model=model, args=told, compute_metrics=score, **rest)

    def evaluate() -> tuple[float, float]:
        found = trainer.evaluate()
        return found["eval_loss"], found["eval_bleu"]

    return evaluate


def run(make: Callable[[Path, int], Evaluate], beams: int, folder: Path, meter: Meter) -> None:
    evaluate = make(folder, beams)
    while True:
        evaluate()
        meter.done(Work(ROWS))


CASES = [
    Case(
        name=f"generation_translation_{beams}",
        what=f"{ROWS} translations with {beams} beams of a small T5, {BATCH} at a time",
        prepare=prepare,
        tokens=0.0,
        ways={
            "stock": Way("Seq2SeqTrainer.evaluate, predict_with_generate", partial(run, stock, beams), "windows", 1),
            "finetune": Way(
                "as in training: the longest first, each token judged", partial(run, ours, beams), "windows", 1
            ),
        },
        baselines=("stock",),
    )
    for beams in BEAMS
]
