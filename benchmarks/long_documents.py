"""Peak memory and time of preprocess and of the check on long documents, and on short ones for comparison.

    python benchmarks/long_documents.py MODEL_FOLDER [ROWS WORDS]

Each is a process of its own, on ROWS (1064) questions whose contexts have WORDS (4000) words.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIPELINE = Path(__file__).resolve().parents[1] / "components" / "question_answering" / "pipeline.yaml"
SYLLABLES = ["ba", "de", "fo", "gu", "ha", "ki", "lo", "mu", "ne", "pa", "ri", "so", "ta", "ve", "wi", "zo"]


def main() -> None:
    model = str(Path(sys.argv[1]).resolve())
    count, length = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 3 else (1064, 4000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, selected = str(write_rows(folder / "rows.jsonl", count, length)), str(folder / "model")
        task = ["--task", "question_answering"]
        measure("finetune.model_selector", *task, "--pytorch_model_path", model, "--output_dir", selected)
        print(f"{count} rows of {length} words\n{'':10} {'peak MB':>8} {'seconds':>8}")
        words = [*task, "--train_file_path", rows, "--model_selector_output", selected]
        show("preprocess", *measure("finetune.preprocess", *words, "--output_dir", str(folder / "data")))
        values = [f"pytorch_model_path={model}", f"train_file_path={rows}"]
        show("check", *measure("finetune.check", str(PIPELINE), "--set", *values))


def write_rows(path: Path, count: int, length: int) -> Path:
    """Write rows whose answer is a word in the middle of the context."""
    drawn = random.Random(0)
    vocabulary = ["".join(drawn.choices(SYLLABLES, k=drawn.randint(1, 4))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            words = drawn.choices(vocabulary, k=length)
            before = " ".join(words[: length // 2]) + " "
            context = before + " ".join(words[length // 2 :])
            answers = {"text": [words[length // 2]], "answer_start": [len(before)]}
            row = {"id": str(i), "question": f"Which word is number {i}?", "context": context, "answers": answers}
            file.write(json.dumps(row) + "\n")
    return path


def measure(module: str, *words: str) -> tuple[float, float]:
    """(peak resident megabytes, seconds)."""
    command, started = [sys.executable, "-m", module, *words], time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # its bars are shown
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{module} failed; try it by hand: {' '.join(command)}")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def show(what: str, peak: float, seconds: float) -> None:
    print(f"{what:10} {peak:8.0f} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
