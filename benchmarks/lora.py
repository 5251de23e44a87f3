"""LoRA beside full finetuning, on the same rows: score, share of trained parameters, seconds per step, peak memory.

    make demo    # fetches the model
    .venv/bin/python benchmarks/lora.py ../shared/data

MiniLM, batch 16, bf16: on 2,000 questions of SQuAD v1.1 (2 epochs, scored on 600 others) and on 3,000 rows of WNUT-17
(3 epochs, scored on its test split). One run after another on all cores; peak memory is that of the training process.

Names of data sets (squad, wnut17), of ways (full, lora, lora128, rslora, dora), learning rates and seeds may follow:
`../shared/data squad lora 1e-3 42`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
LORA = {"apply_lora": "true", "lora_r": 8, "lora_alpha": 16}
# name -> parameters, and the learning rates on the data sets, the best of those tried on seed 42
WAYS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "full": ({}, {"squad": 1e-4, "wnut17": 1e-4}),
    "lora": (LORA, {"squad": 4e-3, "wnut17": 2e-3}),
    "lora128": ({**LORA, "lora_alpha": 128}, {"squad": 5e-4, "wnut17": 5e-4}),  # the component's default
    "rslora": ({**LORA, "lora_type": "rslora"}, {"squad": 2e-3, "wnut17": 2e-3}),
    "dora": ({**LORA, "lora_type": "dora"}, {"squad": 2e-3, "wnut17": 2e-3}),
}
# name -> task, epochs, metric of the result, parameters of preprocess
DATA: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    "squad": ("question_answering", 2, "f1", {"max_seq_length": 384}),
    "wnut17": ("token_classification", 3, "f1", {"max_train_samples": 3000}),
}
# Runs a component and tells the peak of its resident memory, which a parent would find mixed with its own.
RUN = """
import atexit, runpy, sys
atexit.register(lambda: print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=False)
"""


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    words = sys.argv[2:]
    seeds = [int(word) for word in words if word.isdecimal()] or [42, 1, 2]
    rates = [float(word) for word in words if "e-" in word]
    ways = [word for word in words if word in WAYS] or list(WAYS)
    print("data    way     rate     seed  score   trained  s/step  peak GB", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in [word for word in words if word in DATA] or list(DATA):
            work = Path(temporary) / name
            prepare(name, Path(sys.argv[1]), work)
            for seed in seeds:
                for way in ways:
                    for rate in rates or [WAYS[way][1][name]]:
                        measure(name, work, way, rate, seed)


def files(name: str, data: Path) -> dict[str, Path]:
    """The splits of a data set; SQuAD's validation rows are those that are scored."""
    folder = data / "squad_v1" / "bench" if name == "squad" else data / "ner" / name
    test = "validation" if name == "squad" else "test"
    splits = (("train", "train"), ("validation", "validation"), ("test", test))
    return {f"{split}_file_path": folder / f"{file}.parquet" for split, file in splits}


def prepare(name: str, data: Path, work: Path) -> None:
    task, _, _, given = DATA[name]
    run("model_selector", task, pytorch_model_path=MODEL, output_dir=work / "model")
    run(
        "preprocess", task, model_selector_output=work / "model", output_dir=work / "data", **files(name, data), **given
    )


def measure(name: str, work: Path, way: str, rate: float, seed: int) -> None:
    """Train, score and print one line."""
    task, epochs, metric, _ = DATA[name]
    output = work / f"{way}-{rate}-{seed}"
    steps = epochs * -(-json.loads((work / "data" / "preprocess.json").read_text())["splits"]["train"]["windows"] // 16)
    said = run(
        "run",
        task,
        preprocess_output=work / "data",
        model_selector_output=work / "model",
        pytorch_model_folder=output / "pytorch",
        mlflow_model_folder=output / "mlflow",
        learning_rate=rate,
        seed=seed,
        num_train_epochs=epochs,
        warmup_steps=steps // 10,
        precision="bf16",
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        **WAYS[way][0],
    )
    run(
        "evaluation",
        task,
        preprocess_output=work / "data",
        pytorch_model_folder=output / "pytorch",
        evaluation_result=output / "scores",
    )
    score = json.loads((output / "scores" / "metrics.json").read_text())[metric]
    seconds = json.loads((output / "pytorch" / "training.json").read_text())["speed"]["train_seconds"] / steps
    line = next((line for line in said.splitlines() if line.startswith("LoRA:")), "(100%)")
    share = line.partition("(")[2].partition(")")[0]
    peak = int(said.rpartition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    print(f"{name:7} {way:7} {rate:<8g} {seed:<5} {score:<7.4g} {share:>7} {seconds:7.3f} {peak:8.2f}", flush=True)


def run(component: str, task: str, **parameters: Any) -> str:
    """What a component says. Exits with its error if it fails."""
    words = ["--task", task, *(word for name, value in parameters.items() for word in (f"--{name}", str(value)))]
    command = [sys.executable, "-c", RUN, f"finetune.{component}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
