"""Peak memory and speed of the evaluation component on few and on many rows.

    python benchmarks/evaluation_memory.py ROWS.parquet MODEL_FOLDER [FEW]

Each evaluation is a process of its own; FEW (300) rows are taken evenly from the file.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd


def main() -> None:
    file, model, few = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 300
    rows = pd.read_parquet(file)
    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder) / "few.parquet"
        rows.iloc[:: len(rows) // few][:few].to_parquet(some)
        print(f"{'rows':>6} {'peak MB':>8} {'rows/s':>7}")
        for data in (some, file):
            print("{:6} {:8.0f} {:7.1f}".format(*measure(data, model, Path(folder) / data.stem)), flush=True)


def measure(data: Path, model: str, output: Path) -> tuple[int, float, float]:
    """(rows, peak resident megabytes, rows per second)."""
    words = ["--task", "question_answering", "--test_data", str(data), "--pytorch_model_folder", model]
    words += ["--evaluation_result", str(output), "--per_device_eval_batch_size", "16"]
    command = [sys.executable, "-m", "finetune.evaluation", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the evaluation failed; try it by hand: {' '.join(command)}")
    metrics = json.loads((output / "metrics.json").read_text())
    return metrics["rows"], usage.ru_maxrss / 1024, metrics["rows_per_second"]


if __name__ == "__main__":
    main()
