"""What rounding and pruning cost, and what they save: F1 of each backend, over seeds, on questions or on tags.

    make demo    # fetches the model
    .venv/bin/pip install ".[compression]" -c constraints.txt
    .venv/bin/python benchmarks/compression.py ../shared/data OUT

MiniLM, batch 16, 25 steps of warm-up: finetuned for 2 epochs (1e-4); that model pruned by 40% for 2 epochs (1e-4),
rounded for 1 epoch (3e-5), pruned, then rounded, and both in one run of 3 epochs (`joint`), all taught by it (weight
0.9) and, as `…_alone`, by the labels: in bf16 where the processor multiplies in it, else in 32 bits. Each is exported
and scored on 600 rows of validation.

The rows are of SQuAD v1.1, their contexts cut to some 280 characters round the answer; a word that follows takes
others: `full`, whole contexts; `wnut17` or `ncbi_disease`, 3,000 sentences with tags. What is done isn't done again, so
that OUT can be added to: seeds may follow, and names of ways.
"""

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from finetune.core.world import World

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
TAGS = ("wnut17", "ncbi_disease")
ROUND = 130  # characters on each side of an answer
# way -> the way whose model it begins with, and its parameters; "" is the pretrained model
PRUNED = {"apply_pruning": "true", "pruning_ratio": 0.4}
QAT = {"apply_qat": "true", "learning_rate": 3e-5, "num_train_epochs": 1}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "finetuned": ("", {}),
    "qat": ("finetuned", QAT),
    "pruned": ("finetuned", PRUNED),
    "pruned_qat": ("pruned", QAT),
    "joint": ("finetuned", {**PRUNED, "apply_qat": "true", "num_train_epochs": 3}),
    "qat_alone": ("finetuned", QAT),
    "pruned_alone": ("finetuned", PRUNED),
    "pruned_qat_alone": ("pruned_alone", QAT),
}


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    data, out, words = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    out.mkdir(parents=True, exist_ok=True)
    seeds = [int(word) for word in words if word.isdecimal()] or [42, 1, 2]
    ways = [word for word in words if word in WAYS] or list(WAYS)
    tags = next((word for word in words if word in TAGS), "")
    if not (out / "data").exists():
        prepare_tags(data / "ner" / tags, out) if tags else prepare_questions(data, out, "full" in words)
    for seed in seeds:
        for way in ways:
            row = exported(out, way, seed)
            print(
                f"{way:16} {seed:<3} " + "  ".join(f"{name} {one['score']:.2f}" for name, one in row.items()),
                flush=True,
            )
    summary(out, seeds, ways)


def prepare_tags(data: Path, out: Path) -> None:
    """Import the pretrained model, and encode the rows."""
    task = "token_classification"
    files = {f"{split}_file_path": data / f"{split}.parquet" for split in ("train", "validation", "test")}
    run("model_selector", task=task, pytorch_model_path=MODEL, output_dir=out / "pretrained")
    given = {"max_train_samples": 3000, **files}
    run("preprocess", task=task, model_selector_output=out / "pretrained", output_dir=out / "data", **given)


def prepare_questions(data: Path, out: Path, full: bool) -> None:
    """Write the rows, import the pretrained model, and encode."""
    task = "question_answering"
    files = {}
    for split, most in (("train", 2000), ("validation", 600)):
        rows = pd.read_parquet(data / "squad_v1" / "bench" / f"{split}.parquet").to_dict("records")[:most]
        files[f"{split}_file_path"] = out / f"{split}.jsonl"
        text = "".join(f"{json.dumps(row_of(row, full))}\n" for row in rows)
        files[f"{split}_file_path"].write_text(text, encoding="utf-8")
    run("model_selector", task=task, pytorch_model_path=MODEL, output_dir=out / "pretrained")
    files["test_file_path"] = files["validation_file_path"]  # else a fifth of the training rows would become it
    given = {"max_seq_length": 384, **files}
    run("preprocess", task=task, model_selector_output=out / "pretrained", output_dir=out / "data", **given)


def row_of(row: dict[str, Any], full: bool) -> dict[str, Any]:
    """A row of SQuAD with those of its answers that lie in what is left of its context."""
    starts, texts, context = (
        list(map(int, row["answers"]["answer_start"])),
        list(row["answers"]["text"]),
        row["context"],
    )
    first, last = 0, len(context)
    if not full:
        first = context.rfind(" ", 0, max(0, starts[0] - ROUND)) + 1
        found = context.find(" ", starts[0] + len(texts[0]) + ROUND)
        last = found if found > 0 else len(context)
    inside = [(t, s - first) for t, s in zip(texts, starts, strict=True) if first <= s and s + len(t) <= last]
    answers = {"text": [text for text, _ in inside], "answer_start": [start for _, start in inside]}
    return {"id": row["id"], "question": row["question"], "context": context[first:last], "answers": answers}


def selected(out: Path, way: str, seed: int) -> Path:
    """Import the model of a way, once."""
    folder = out / f"{way}-{seed}" / "selected"
    if not way:
        return out / "pretrained"
    if not folder.exists():
        run("model_selector", task=task_of(out), pytorch_model_path=trained(out, way, seed), output_dir=folder)
    return folder


def trained(out: Path, way: str, seed: int) -> Path:
    """Train the model of a way, once; on that of another way it is taught by the finetuned model, unless alone."""
    folder = out / f"{way}-{seed}"
    start, given = WAYS[way]
    if (folder / "pytorch" / "training.json").exists():
        return folder / "pytorch"
    taught: dict[str, Any] = {}
    if start and not way.endswith("_alone"):
        taught = {"teacher_model_path": trained(out, "finetuned", seed), "distillation_weight": 0.9}
    usual = {"learning_rate": 1e-4, "num_train_epochs": 2, "per_device_train_batch_size": 16, "save_total_limit": 1}
    usual |= {"precision": "bf16" if World.here().cpu_has_bf16() else "32"}
    usual |= {"warmup_steps": 25, "per_device_eval_batch_size": 16, "metric_for_best_model": "f1", "seed": seed}
    run(
        "run",
        task=task_of(out),
        preprocess_output=out / "data",
        model_selector_output=selected(out, start, seed),
        pytorch_model_folder=folder / "pytorch",
        mlflow_model_folder=folder / "mlflow",
        **{**usual, **taught, **given},
    )
    return folder / "pytorch"


def exported(out: Path, way: str, seed: int) -> dict[str, Any]:
    """Return backend -> what backends.json says of it."""
    folder = out / f"{way}-{seed}" / "openvino"
    if not (folder / "backends.json").exists():
        run(
            "export",
            pytorch_model_folder=trained(out, way, seed),
            preprocess_output=out / "data",
            openvino_model_folder=folder,
            threads=1,
            benchmark_seconds=20,
            max_scored_rows=600,
        )
    rows = json.loads((folder / "backends.json").read_text(encoding="utf-8"))["backends"]
    return {row["name"]: row for row in rows}


def summary(out: Path, seeds: list[int], ways: list[str]) -> None:
    """Print the mean F1 and its standard deviation, how much faster than OpenVINO FP32 unpruned, and the size."""
    print("\nway              backend              F1 mean   sd  times as fast  disk MB")
    base = {seed: exported(out, "finetuned", seed)["OpenVINO FP32"]["p50_ms"] for seed in seeds}
    for way in ways:
        found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for seed in seeds:
            for name, row in exported(out, way, seed).items():
                found[name].append((row["score"], base[seed] / row["p50_ms"], row["disk_mb"]))
        for name, rows in found.items():
            scores, times, sizes = zip(*rows, strict=True)
            sd = statistics.stdev(scores) if len(scores) > 1 else 0
            mean, ratio = statistics.mean(scores), statistics.median(times)
            print(f"{way:16} {name:20} {mean:7.2f} {sd:4.2f} {ratio:14.2f} {sizes[0]:8.1f}")


def task_of(out: Path) -> str:
    return str(json.loads((out / "data" / "preprocess.json").read_text(encoding="utf-8"))["task"])


def run(component: str, **parameters: Any) -> None:
    """Run a component. Exits with its error if it fails."""
    words = [word for name, value in parameters.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", f"finetune.{component}", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)


if __name__ == "__main__":
    main()
