"""Evaluation by generation beside the stock loop, `Seq2SeqTrainer.evaluate` with predict_with_generate: same model,
rows, batch, length and beams, in turn. Median seconds by the clock and of the processor; the BLEU has to be the same.

    python -m benchmarks.writing                       # the sample in examples/translation
    python -m benchmarks.writing ROWS.jsonl en de      # a file of pairs

A small T5 is trained on the rows first, by the command line, so that what it writes is of different lengths. Both
compute the loss, write, decode, and score with BLEU and chrF of sacreBLEU; encoding is not counted.

64 pairs of the sample, batches of 16, 3 times in turn, one thread of two cores of which the other was in use:

    beams  way    seconds  of the processor  loss    BLEU
    1      ours   2.28     2.23              2.3382  0.195
           stock  2.29     2.16              2.3428  0.195
    4      ours   3.26     3.09              2.3382  0.167
           stock  3.19     3.15              2.3428  0.167

With one beam `score` and `margin` come of the logits that tokens were chosen by; with several the decoder passes once
more over what it wrote. The losses differ as the stock one is a mean over batches, ours over tokens.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from finetune import model_selector, preprocess, run
from finetune.core.console import quiet_libraries
from finetune.data.batches import as_windows, batches_by_length
from finetune.data.folders import Preprocessed, read_rows
from finetune.models.loading import load_model
from finetune.models.prediction import predict
from finetune.models.stored.configs import stored_state
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.tasks.generation import targets
from finetune.tasks.translation import TASK, metrics, pairs
from tests.conftest import finetune_words, write_jsonl
from tests.writers import build_writer

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "translation"
ROWS, BATCH, TIMES = 64, 16, 3
SIZES = {"d_model": 128, "d_ff": 512, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
STEPS = {"max_steps": 120, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 16}


def trained(folder: Path, rows: list[dict[str, Any]], source: str, target: str) -> Path:
    """Return the outputs of import, preprocess and finetune."""
    words = ["--task", "translation", "--model_selector_output", str(folder / "model")]
    for name, part in (("train", rows[ROWS:]), ("validation", rows[:ROWS]), ("test", rows[:ROWS])):
        words += [f"--{name}_file_path", str(write_jsonl(folder / f"{name}.jsonl", part))]
    words += ["--source_lang", source, "--target_lang", target, "--max_target_length", "64"]
    tiny = build_writer("t5", folder / "tiny", **SIZES)
    model_selector.main(
        ["--task", "translation", "--pytorch_model_path", str(tiny), "--output_dir", str(folder / "model")]
    )
    preprocess.main([*words, "--max_dropped_fraction", "1", "--output_dir", str(folder / "data")])
    run.main(finetune_words(folder, folder, **STEPS, evaluation_strategy="steps", eval_steps=STEPS["max_steps"]))
    return folder


def ours(folder: Path, beams: int) -> Callable[[], tuple[float, float]]:
    """Return what evaluates as `finetune` does in training: loss and BLEU."""
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


def stock(folder: Path, beams: int) -> Callable[[], tuple[float, float]]:
    """Return what evaluates as transformers' examples do."""
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


def compared(ways: dict[str, Callable[[], tuple[float, float]]]) -> dict[str, Any]:
    """Return the median seconds, by the clock and of the processor, loss and BLEU of each, run in turn."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    scores: dict[str, tuple[float, float]] = {}
    for _ in range(TIMES):
        for name, evaluate in ways.items():
            started, busy = time.perf_counter(), time.process_time()
            scores[name] = evaluate()
            seconds[name].append((time.perf_counter() - started, time.process_time() - busy))
    found: dict[str, Any] = {}
    for name, (loss, bleu) in scores.items():
        clock, processor = (round(statistics.median(times), 2) for times in zip(*seconds[name], strict=True))
        found[name] = {"seconds": clock, "cpu_seconds": processor, "loss": loss, "bleu": bleu}
    return found


def main(argv: list[str]) -> None:
    file, source, target = argv or [str(SAMPLE / "train.jsonl"), "en", "tav"]
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    quiet_libraries()
    found: dict[str, Any] = {"rows": min(ROWS, len(rows)), "batch": BATCH, "times": TIMES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = trained(Path(temporary), rows, source, target)
        for beams in (1, 4):
            found[f"num_beams {beams}"] = compared({"ours": ours(folder, beams), "stock": stock(folder, beams)})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
