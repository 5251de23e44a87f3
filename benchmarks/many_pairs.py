"""Peak memory and time of preprocess on many pairs to translate: memory should hardly grow with them.

    python benchmarks/many_pairs.py MODEL_FOLDER [PAIRS ...]

Each is a process of its own, on 100,000 and 1,000,000 pairs by default, of 5 to 18 words and a number. MODEL_FOLDER is
that of an encoder-decoder, as out/scratch_translation after `make demo TASK=translation`.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

from long_documents import SYLLABLES, measure, show


def main() -> None:
    model = str(Path(sys.argv[1]).resolve())
    print(f"{'pairs':10} {'peak MB':>8} {'seconds':>8}")
    for count in map(int, sys.argv[2:] or ("100_000", "1_000_000")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows, selected = str(write_rows(folder / "rows.jsonl", count)), str(folder / "model")
            task = ["--task", "translation"]
            measure("finetune.model_selector", *task, "--pytorch_model_path", model, "--output_dir", selected)
            words = [*task, "--train_file_path", rows, "--model_selector_output", selected]
            words += ["--source_lang", "en", "--target_lang", "tav", "--output_dir", str(folder / "data")]
            show(f"{count:,}", *measure("finetune.preprocess", *words))


def write_rows(path: Path, count: int) -> Path:
    """Write pairs of which no two are the same; the target has the words of the source backwards."""
    drawn = random.Random(0)
    vocabulary = ["".join(drawn.choices(SYLLABLES, k=drawn.randint(1, 3))) for _ in range(200)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            words = [*drawn.choices(vocabulary, k=drawn.randint(5, 18)), str(i)]
            file.write(json.dumps({"en": " ".join(words), "tav": " ".join(reversed(words))}) + "\n")
    return path


if __name__ == "__main__":
    main()
