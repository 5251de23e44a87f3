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
that OUT can be added to: seeds may follow, and names of ways. Times of several models are compared only where they were
taken in turns, so at the end the models of the first seed are converted again and timed together.
"""

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from finetune.backends.candidates import Candidate, in_openvino, in_pytorch
from finetune.backends.measured import speeds, threads_of
from finetune.core.console import quiet_libraries
from finetune.core.world import World
from finetune.export import trial_of
from finetune.params.export import ExportParams

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
TAGS = ("wnut17", "ncbi_disease")
SECONDS = 120.0  # in which all models take turns
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
    together(out, seeds[0], ways)


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
    usual: dict[str, Any] = {
        "learning_rate": 1e-4,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "save_total_limit": 1,
    }
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
            benchmark_seconds=5,
            max_scored_rows=600,
        )
    rows = json.loads((folder / "backends.json").read_text(encoding="utf-8"))["backends"]
    return {row["name"]: row for row in rows}


def summary(out: Path, seeds: list[int], ways: list[str]) -> None:
    """Print the mean F1, its standard deviation and the size of each backend."""
    print("\nway              backend              F1 mean   sd  disk MB")
    for way in ways:
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for seed in seeds:
            for name, row in exported(out, way, seed).items():
                found[name].append(row)
        for name, rows in found.items():
            scores = [row["score"] for row in rows]
            sd = statistics.stdev(scores) if len(scores) > 1 else 0
            print(f"{way:16} {name:20} {statistics.mean(scores):7.2f} {sd:4.2f} {rows[0]['disk_mb']:8.1f}")


def together(out: Path, seed: int, ways: list[str]) -> None:
    """Print milliseconds of a window and windows a second, of PyTorch and OpenVINO, all in turns with one thread."""
    quiet_libraries()
    with TemporaryDirectory() as folder, threads_of(1):
        found: dict[str, Candidate] = {}
        for way in ways:
            given: dict[str, Any] = {
                "pytorch_model_folder": trained(out, way, seed),
                "preprocess_output": out / "data",
                "threads": 1,
            }
            given |= {"openvino_model_folder": Path(folder) / way, "max_scored_rows": 600}
            trial = trial_of(ExportParams(**given), trained(out, way, seed))
            models = [in_pytorch(trial)[0], *in_openvino(trial, "ptq", Path(folder) / way)]
            found |= {f"{way:16} {one.name:20}": one for one in models}
        answers = {name: partial(trial.answer, one.model) for name, one in found.items()}
        speed = speeds(answers, trial.alone, trial.together, SECONDS)
    first = next(name for name in speed if "OpenVINO FP32" in name)
    base = speed[first]
    print(f"\nas fast as {first}\nway              backend                   ms  as fast  windows/s  as fast")
    for name, one in speed.items():
        alone, many = base.p50_ms / one.p50_ms, one.windows_per_second / base.windows_per_second
        print(f"{name} {one.p50_ms:7.1f} {alone:8.2f} {one.windows_per_second:10.1f} {many:8.2f}")


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
