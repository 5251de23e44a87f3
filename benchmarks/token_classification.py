"""Token classification beside a stock Hugging Face Trainer, on the same rows: F1 or accuracy.

    make demo    # fetches the model
    .venv/bin/python benchmarks/token_classification.py scores ../shared/data/ner

`scores`: MiniLM on 3,000 training rows of each data set, 3 epochs, learning rate 1e-4, batch 16, bf16, three seeds; the
model after the last step, scored on the whole test split. Ours and stock run at once, each on half of the cores.
Names of data sets and seeds may follow, to do a part: `scores ../shared/data/ner wnut17 42 1`. Speed is measured by
`make bench`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
DATA_SETS = {"wnut17": "f1", "ncbi_disease": "f1", "ud_ewt_upos": "accuracy"}
SEEDS = (42, 1, 2)
ROWS, EPOCHS, RATE, BATCH = 3000, 3, 1e-4, 16
TASK = ["--task", "token_classification"]


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("scores", "stock"):
        sys.exit(__doc__)
    if sys.argv[1] == "stock":
        print(json.dumps(stock(json.loads(sys.argv[2]))))
        return
    chosen = [name for name in sys.argv[3:] if name in DATA_SETS] or list(DATA_SETS)
    seeds = [int(word) for word in sys.argv[3:] if word.isdecimal()] or list(SEEDS)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        cores = os.sched_getaffinity(0)
        finetune("model_selector", cores, pytorch_model_path=MODEL, output_dir=work / "model")
        for name in chosen:
            splits = {
                f"{s}_file_path": Path(sys.argv[2]) / name / f"{s}.parquet" for s in ("train", "validation", "test")
            }
            given = {"model_selector_output": work / "model", "max_train_samples": ROWS, **splits}
            finetune("preprocess", cores, **given, output_dir=work / name)
            scores(work, name, seeds)


def scores(work: Path, name: str, seeds: list[int]) -> None:
    metric = DATA_SETS[name]
    found: dict[str, list[float]] = {"ours": [], "stock": []}
    cores = sorted(os.sched_getaffinity(0))
    halves = set(cores[len(cores) // 2 :]), set(cores[: (len(cores) + 1) // 2])
    for seed in seeds:
        with ThreadPoolExecutor() as pool:
            runs = {"ours": pool.submit(score_ours, work, name, metric, seed, halves[0])}
            runs["stock"] = pool.submit(run_stock, work, name, halves[1], seed=seed, epochs=EPOCHS, metric=metric)
        found["ours"].append(runs["ours"].result())
        found["stock"].append(runs["stock"].result()[metric])
        print(f"{name} seed {seed}: ours {found['ours'][-1]:.4f}, stock {found['stock'][-1]:.4f}", flush=True)
    for label, values in found.items() if len(seeds) > 1 else ():
        print(
            f"{name} {metric} {label}: mean {statistics.mean(values):.4f}, sd {statistics.stdev(values):.4f}",
            flush=True,
        )


def score_ours(work: Path, name: str, metric: str, seed: int, cores: set[int]) -> float:
    steps = EPOCHS * -(-ROWS // BATCH)
    given = {"num_train_epochs": EPOCHS, "evaluation_strategy": "steps", "eval_steps": steps, "seed": seed}
    folders = train_ours(work, name, cores, **given, precision="bf16")
    finetune("evaluation", cores, preprocess_output=work / name, **folders, evaluation_result=work / "result")
    return float(json.loads((work / "result" / "metrics.json").read_text())[metric])


def call(cores: set[int], *words: str) -> str:
    """What a program prints that runs on these cores."""
    env = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
    command = [sys.executable, *words]
    pin = partial(os.sched_setaffinity, 0, cores)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, preexec_fn=pin)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def finetune(module: str, cores: set[int], **given: Any) -> None:
    words = [word for parameter, value in given.items() for word in (f"--{parameter}", str(value))]
    call(cores, "-m", f"finetune.{module}", *TASK, *words)


def train_ours(work: Path, name: str, cores: set[int], **given: Any) -> dict[str, Path]:
    folders = {"pytorch_model_folder": work / "pytorch"}
    batch = {"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 32, "learning_rate": RATE}
    ports = {"preprocess_output": work / name, "model_selector_output": work / "model"}
    finetune("run", cores, **ports, **folders, mlflow_model_folder=work / "mlflow", **batch, **given)
    return folders


def run_stock(work: Path, name: str, cores: set[int], **settings: Any) -> dict[str, float]:
    settings |= {"model": str(MODEL), "data": str(work / name), "output": str(work / "stock")}
    result: dict[str, float] = json.loads(call(cores, __file__, "stock", json.dumps(settings)).splitlines()[-1])
    return result


def stock(given: dict[str, Any]) -> dict[str, float]:
    """What transformers' run_ner example does, with dynamic padding."""
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

    def encode(rows: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(rows["tokens"], is_split_into_words=True, truncation=True)
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
    arguments = TrainingArguments(
        output_dir=given["output"],
        num_train_epochs=given.get("epochs", 1),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=32,
        learning_rate=RATE,
        seed=given.get("seed", 42),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        bf16=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=metrics,
    )
    trainer.train()
    return {key.removeprefix("eval_"): value for key, value in trainer.evaluate(data["test"]).items()}


if __name__ == "__main__":
    main()
