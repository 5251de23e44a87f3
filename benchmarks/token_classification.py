"""Token classification beside a stock Hugging Face Trainer, on the same rows: F1 or accuracy, and training speed.

    make demo    # fetches the model
    .venv/bin/python benchmarks/token_classification.py scores ../shared/data/ner
    .venv/bin/python benchmarks/token_classification.py speed ../shared/data/ner

`scores`: MiniLM on 3,000 training rows of each data set, 3 epochs, learning rate 1e-4, batch 16, three seeds; ours and
stock in turn; the best epoch by validation F1 (accuracy for parts of speech), scored on the whole test split.
`speed`: training samples per second over 100 steps: ours, stock with dynamic padding, and stock padded to the model's
maximum, as the published component does, in turn. Every run is a process of its own.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
DATA_SETS = {"wnut17": "f1", "ncbi_disease": "f1", "ud_ewt_upos": "accuracy"}
SEEDS = (42, 1, 2)
ROWS, EPOCHS, RATE, BATCH, STEPS = 3000, 3, 1e-4, 16, 100
TASK = ["--task", "token_classification"]


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("scores", "speed", "stock"):
        sys.exit(__doc__)
    if sys.argv[1] == "stock":
        print(json.dumps(stock(json.loads(sys.argv[2]))))
        return
    chosen = sys.argv[3:] or list(DATA_SETS)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        finetune("model_selector", pytorch_model_path=MODEL, output_dir=work / "model")
        for name in chosen:
            splits = {
                f"{s}_file_path": Path(sys.argv[2]) / name / f"{s}.parquet" for s in ("train", "validation", "test")
            }
            given = {"model_selector_output": work / "model", "max_train_samples": ROWS, **splits}
            finetune("preprocess", **given, output_dir=work / name)
            (scores if sys.argv[1] == "scores" else speed)(work, name)


def scores(work: Path, name: str) -> None:
    metric = DATA_SETS[name]
    found: dict[str, list[float]] = {"ours": [], "stock": []}
    for seed in SEEDS:
        folders = train_ours(work, name, num_train_epochs=EPOCHS, metric_for_best_model=metric, seed=seed)
        result = work / "result"
        finetune("evaluation", preprocess_output=work / name, **folders, evaluation_result=result)
        found["ours"].append(json.loads((result / "metrics.json").read_text())[metric])
        found["stock"].append(run_stock(work, name, seed=seed, epochs=EPOCHS, metric=metric)[metric])
        print(f"{name} seed {seed}: ours {found['ours'][-1]:.4f}, stock {found['stock'][-1]:.4f}", flush=True)
    for label, values in found.items():
        print(
            f"{name} {metric} {label}: mean {statistics.mean(values):.4f}, sd {statistics.stdev(values):.4f}",
            flush=True,
        )


def speed(work: Path, name: str) -> None:
    rates = {"stock, padded to 512": run_stock(work, name, steps=STEPS, pad=True)["samples_per_second"]}
    rates["stock, dynamic padding"] = run_stock(work, name, steps=STEPS)["samples_per_second"]
    for precision in ("32", "bf16"):
        folders = train_ours(
            work, name, max_steps=STEPS, evaluation_strategy="steps", eval_steps=STEPS, precision=precision
        )
        trained = json.loads((folders["pytorch_model_folder"] / "training.json").read_text())
        rates[f"ours, precision {precision}"] = trained["speed"]["train_samples_per_second"]
    slowest = rates["stock, padded to 512"]
    for label, rate in rates.items():
        print(f"{name} {label}: {rate:.1f} samples/s, {rate / slowest:.1f}x", flush=True)


def finetune(module: str, **given: Any) -> None:
    words = [word for parameter, value in given.items() for word in (f"--{parameter}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", f"finetune.{module}", *TASK, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def train_ours(work: Path, name: str, **given: Any) -> dict[str, Path]:
    folders = {"pytorch_model_folder": work / "pytorch"}
    batch = {"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 32, "learning_rate": RATE}
    ports = {"preprocess_output": work / name, "model_selector_output": work / "model"}
    finetune("run", **ports, **folders, mlflow_model_folder=work / "mlflow", **batch, **given)
    return folders


def run_stock(work: Path, name: str, **settings: Any) -> dict[str, float]:
    settings |= {"model": str(MODEL), "data": str(work / name), "output": str(work / "stock")}
    done = subprocess.run(
        [sys.executable, __file__, "stock", json.dumps(settings)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def stock(given: dict[str, Any]) -> dict[str, float]:
    """What transformers' run_ner example does: dynamic padding, or all rows padded to the longest the model takes."""
    import numpy as np
    from datasets import Dataset
    from seqeval.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    splits = {
        s: [json.loads(line) for line in (Path(given["data"]) / s / "rows.jsonl").open()]
        for s in ("train", "validation", "test")
    }
    labels = sorted({tag for rows in splits.values() for row in rows for tag in row["tags"]})
    pad = {"padding": "max_length", "max_length": 512} if given.get("pad") else {}

    def encode(rows: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(rows["tokens"], is_split_into_words=True, truncation=True, **pad)
        encoded["labels"] = []
        for i, tags in enumerate(rows["tags"]):
            words = encoded.word_ids(i)
            first = [w is not None and w != (words[k - 1] if k else None) for k, w in enumerate(words)]
            encoded["labels"].append([labels.index(tags[w]) if f else -100 for w, f in zip(words, first, strict=True)])
        return encoded

    data = {}
    for split, rows in splits.items():
        made = Dataset.from_list([{"tokens": row["tokens"], "tags": row["tags"]} for row in rows])
        data[split] = made.map(encode, batched=True, remove_columns=["tokens", "tags"])

    def metrics(output: Any) -> dict[str, float]:
        best = output.predictions.argmax(-1)
        keep = output.label_ids != -100
        found = [[labels[c] for c in row[mask]] for row, mask in zip(best, keep, strict=True)]
        gold = [[labels[c] for c in row[mask]] for row, mask in zip(output.label_ids, keep, strict=True)]
        if given.get("metric") == "accuracy":
            return {
                "accuracy": float(
                    np.mean([a == b for x, y in zip(found, gold, strict=True) for a, b in zip(x, y, strict=True)])
                )
            }
        return {"f1": f1_score(gold, found), "accuracy": accuracy_score(gold, found)}

    set_seed(given.get("seed", 42))
    model = AutoModelForTokenClassification.from_pretrained(
        given["model"], id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
    )
    epochs = (
        {
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": given["metric"],
        }
        if "epochs" in given
        else {"save_strategy": "no"}
    )
    arguments = TrainingArguments(
        output_dir=given["output"],
        num_train_epochs=given.get("epochs", 1),
        max_steps=given.get("steps", -1),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=32,
        learning_rate=RATE,
        seed=given.get("seed", 42),
        use_cpu=True,
        report_to="none",
        save_total_limit=1,
        disable_tqdm=True,
        **epochs,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=metrics,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    if "steps" in given:
        return {"samples_per_second": BATCH * given["steps"] / seconds}
    return {key.removeprefix("eval_"): value for key, value in trainer.evaluate(data["test"]).items()}


if __name__ == "__main__":
    main()
