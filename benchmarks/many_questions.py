"""Peak memory and time of preprocess, of the start of training and of evaluation on many questions.

    python benchmarks/many_questions.py [QUESTIONS ...]

Each is a process of its own, on 100,000 and 1,000,000 questions by default, on contexts of 60 to 140 words, with a BERT
of one layer whose weights are random. They are trained on, for two steps, and evaluated on. Memory should hardly grow.
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from long_documents import SYLLABLES, measure, show

TASK = ["--task", "question_answering"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
DRAWN = random.Random(0)
VOCABULARY = sorted({"".join(DRAWN.choices(SYLLABLES, k=DRAWN.randint(1, 4))) for _ in range(5000)})


def main() -> None:
    print(f"{'questions':10} {'peak MB':>8} {'seconds':>8}")
    for count in map(int, sys.argv[1:] or ("100_000", "1_000_000")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for what, module, words in commands(folder, count):
                show(f"{count:,} {what}", *measure(module, *TASK, *map(str, words)))


def commands(folder: Path, count: int) -> Iterator[tuple[str, str, list[object]]]:
    """Yield (what it is, module, words) of each step, whose files are written before it."""
    build_model(folder / "hub")
    imported = ["--pytorch_model_path", folder / "hub", "--output_dir", folder / "model"]
    yield "import", "finetune.model_selector", imported
    many, few = write_rows(folder / "many.jsonl", count), write_rows(folder / "few.jsonl", 200)
    files = ["--train_file_path", many, "--validation_file_path", few, "--test_file_path", many]
    words = ["--model_selector_output", folder / "model", "--output_dir", folder / "data"]
    yield "preprocess", "finetune.preprocess", [*files, *words, "--max_seq_length", 256]
    outputs = ["--pytorch_model_folder", folder / "pytorch", "--mlflow_model_folder", folder / "mlflow"]
    words = ["--preprocess_output", folder / "data", "--model_selector_output", folder / "model", *outputs]
    yield "training", "finetune.run", [*words, "--max_steps", 2, "--per_device_train_batch_size", 16]
    words = ["--preprocess_output", folder / "data", "--pytorch_model_folder", folder / "pytorch"]
    words += ["--evaluation_result", folder / "result", "--per_device_eval_batch_size", 64]
    yield "evaluation", "finetune.evaluation", words


def build_model(folder: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *"0123456789", "which", "word", "is", "number"]
    vocabulary += [*(f"##{digit}" for digit in range(10)), *VOCABULARY]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(vocabulary), **SHAPE)).save_pretrained(folder)


def write_rows(path: Path, count: int) -> Path:
    """Write rows whose answer is a word of the context, each with a context of its own."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            words = DRAWN.choices(VOCABULARY, k=DRAWN.randint(60, 140))
            place = DRAWN.randrange(len(words))
            before = "".join(f"{word} " for word in words[:place])
            answers = {"text": [words[place]], "answer_start": [len(before)]}
            row = {
                "id": str(i),
                "question": f"Which word is number {i}?",
                "context": " ".join(words),
                "answers": answers,
            }
            file.write(json.dumps(row) + "\n")
    return path


if __name__ == "__main__":
    main()
