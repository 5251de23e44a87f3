"""The demo: run the pipeline YAML of a task on its bundled sample, and show what the model learnt."""

import json
import sys
import time
from pathlib import Path

import torch

from finetune import evaluation, pipeline
from finetune.core.console import say
from finetune.data.folders import read_rows
from finetune.tasks import load_task

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
SETTINGS = {
    "question_answering": {
        "max_seq_length": "256",
        "per_device_train_batch_size": "8",
        "per_device_eval_batch_size": "16",
        "num_train_epochs": "3",
        "learning_rate": "2e-4",
        "warmup_steps": "16",
        "logging_strategy": "steps",
        "logging_steps": "27",
        "metric_for_best_model": "f1",
    },
    "token_classification": {
        "max_seq_length": "128",
        "per_device_train_batch_size": "8",
        "per_device_eval_batch_size": "16",
        "num_train_epochs": "5",
        "learning_rate": "3e-4",
        "warmup_steps": "20",
        "logging_strategy": "steps",
        "logging_steps": "30",
        "metric_for_best_model": "f1",
    },
}
SHOWN = 4


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "question_answering"
    if name not in SETTINGS:
        sys.exit(f"no demo for {name!r}; there is one for: {', '.join(SETTINGS)}")
    task, output, sample = load_task(name), ROOT / "out" / f"demo_{name}", ROOT / "examples" / name
    values = {f"{split}_file_path": str(sample / f"{split}.jsonl") for split in ("train", "validation", "test")}
    values |= {"pytorch_model_path": str(MODEL), "precision": precision(), **SETTINGS[name]}

    done = pipeline.run(pipeline.Words(ROOT / "components" / name / "pipeline.yaml", output, values, force=False))
    steps = output / "steps"
    started = time.perf_counter()
    say("\n--- the base model on the same held-out rows, for comparison")
    base = ["--task", name, "--preprocess_output", str(steps / f"{name}_datapreprocess" / "output_dir")]
    base += ["--pytorch_model_folder", str(steps / f"{name}_model_import" / "output_dir" / "model")]
    evaluation.main([*base, "--evaluation_result", str(output / "base_evaluation")])

    rows = read_rows(steps / f"{name}_datapreprocess" / "output_dir" / "test" / "rows.jsonl")
    predictions = read_rows(output / "evaluation_result" / "predictions.jsonl")
    before, after = (
        json.loads((output / f / "metrics.json").read_text()) for f in ("base_evaluation", "evaluation_result")
    )
    say("\n--- some of what it says to rows that it never saw, marked [[ ]] in their text")
    for i in range(0, len(rows), len(rows) // SHOWN):
        say(f"{task.report.show(predictions[i], rows[i])}\n")
    say(f"--- {len(rows)} held-out rows")
    say(f"{'':12}{''.join(f'{name:>11}' for name in task.scoring.hub_metrics)}")
    for label, metrics in (("base", before), ("finetuned", after)):
        shown = [f"{metrics[name] * 100 / task.scoring.full_score:11.1f}" for name in task.scoring.hub_metrics]
        say(f"{label:12}{''.join(shown)}")
    say(f"\ndevice     {device()}, precision {values['precision']}")
    for item in done:
        say(f"{item.seconds:6.1f} s   {item.step}{' (unchanged, skipped)' if item.status == 'unchanged' else ''}")
    say(f"{time.perf_counter() - started:6.1f} s   base model, for comparison")
    say(f"\nmodel      {output / 'pytorch_model_folder'}\nMLflow     {output / 'mlflow_model_folder'}")
    say(f"curves     mlflow ui --backend-store-uri sqlite:///{output}/mlflow.db")


def precision() -> str:
    """bf16 where the processor or GPU computes in it, else 32 bits."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "32"


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
