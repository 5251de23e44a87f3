"""What all tests share: a tiny BERT with a real WordPiece tokenizer, the bundled sample, real data where present."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import finetune  # noqa: F401  (sets the switches of the libraries before they are imported)
from tests.forking import ALL, Forks

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "examples"
REAL_DATA = ROOT.parent / "shared" / "data"


TRAINED_TAGS = {"max_steps": 300, "evaluation_strategy": "steps", "eval_steps": 75, "learning_rate": 5e-3}
TRAINED_TAGS |= {"per_device_train_batch_size": 8, "metric_for_best_model": "f1"}


@pytest.fixture(scope="session", autouse=True)
def tracking_store() -> Iterator[str]:
    """For all runs: to make a SQLite store takes a second, and each of its commits waits for a disk."""
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as folder, pytest.MonkeyPatch.context() as patch:
        uri = f"sqlite:///{folder}/mlflow.db"
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(autouse=True)
def one_tracking_store(tracking_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow leaves that of the run before in this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_store)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """For processes that train: what starts them, imports and how they end by themselves is tested elsewhere."""
    with Forks(tmp_path_factory.mktemp("forks"), dict(os.environ), ALL) as forks:
        yield forks


@pytest.fixture(scope="session")
def forks_with_deepspeed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks"), dict(os.environ), (*ALL, "deepspeed")) as forks:
        yield forks


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: BERT of 2 layers x 32 with random weights, tokenizer trained on the sample."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny_model"))


def build_tiny_model(folder: Path, **config: Any) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = build_wordpiece(folder)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 160,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    BertModel(BertConfig(**{**values, **config})).save_pretrained(folder)
    return folder


def build_wordpiece(folder: Path) -> Any:
    """A tokenizer of 1,500 word pieces, saved in the folder."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    wordpiece = BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator(sample_texts(), vocab_size=1500, show_progress=False)
    wordpiece.save(str(folder / "wordpiece.json"))
    tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "wordpiece.json"), model_max_length=int(1e30))
    tokenizer.save_pretrained(folder)
    (folder / "wordpiece.json").unlink()
    return tokenizer


def sample_texts() -> list[str]:
    return [row[key] for row in sample_rows("train") for key in ("question", "context")]


def sample_rows(split: str, task: str = "question_answering") -> list[dict[str, Any]]:
    with (SAMPLES / task / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """SQuAD and others, which can't be shipped with the project."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def prepared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48, 12 and 12 rows of the sample of question answering."""
    return prepare(tmp_path_factory.mktemp("prepared"), tiny_model, max_seq_length=128, doc_stride=32)


@pytest.fixture(scope="session")
def prepared_tags(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240, 40 and 40 rows of the sample of token classification, from which even the tiny model learns a little."""
    return prepare(tmp_path_factory.mktemp("prepared_tags"), tiny_model, "token_classification", (240, 40, 40))


@pytest.fixture(scope="session")
def trained_tags(prepared_tags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pytorch/` and `mlflow/` of a run whose model, evaluated four times, finds some entities. Not to be changed."""
    from finetune import run

    folder = tmp_path_factory.mktemp("trained_tags")
    run.main(finetune_words(prepared_tags, folder, **TRAINED_TAGS))
    return folder


@pytest.fixture(scope="session")
def prepared_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32, 8 and 6 rows of the sample of translation, for a tiny T5; what it writes ends after 40 tokens."""
    from tests.writers import build_writer

    folder = tmp_path_factory.mktemp("prepared_pairs")
    given = {"source_lang": "en", "target_lang": "tav", "max_seq_length": 60, "max_target_length": 40}
    return prepare(folder, build_writer("t5", folder / "tiny"), "translation", (32, 8, 6), **given)


@pytest.fixture(scope="session")
def prepared_answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32, 8 and 6 rows of the sample of generative question answering, for a tiny T5."""
    from tests.writers import build_writer

    folder = tmp_path_factory.mktemp("prepared_answers")
    given = {"max_seq_length": 128, "doc_stride": 16, "max_answer_length": 40}
    model = build_writer("t5", folder / "tiny")
    return prepare(folder, model, "generative_question_answering", (32, 8, 6), **given)


def prepare(
    folder: Path,
    model: Path,
    task: str = "question_answering",
    counts: tuple[int, int, int] = (48, 12, 12),
    **parameters: Any,
) -> Path:
    """Outputs of model import (`model/`) and preprocess (`data/`) on some rows of the sample."""
    from finetune import model_selector, preprocess

    words = ["--task", task, "--model_selector_output", str(folder / "model"), "--output_dir", str(folder / "data")]
    for split, count in zip(("train", "validation", "test"), counts, strict=True):
        file = write_jsonl(folder / f"{split}.jsonl", sample_rows(split, task)[:count])
        words += [f"--{split}_file_path", str(file)]
    model_selector.main(["--task", task, "--pytorch_model_path", str(model), "--output_dir", str(folder / "model")])
    preprocess.main([*words, *(word for name, value in parameters.items() for word in (f"--{name}", str(value)))])
    return folder


def finetune_words(prepared: Path, output: Path, **parameters: Any) -> list[str]:
    """The command line of finetune.run on the prepared folders, of the task that they were prepared for.

    By default an evaluation takes one window at a time; here all at once, where nothing else is given.
    """
    parameters = {"per_device_eval_batch_size": 16, **parameters}
    task = json.loads((prepared / "data" / "preprocess.json").read_text())["task"]
    words = ["--task", task, "--preprocess_output", str(prepared / "data")]
    words += ["--model_selector_output", str(prepared / "model")]
    words += ["--pytorch_model_folder", str(output / "pytorch"), "--mlflow_model_folder", str(output / "mlflow")]
    return words + [word for name, value in parameters.items() for word in (f"--{name}", str(value))]


def peaks(code: str, *argv: str) -> list[int]:
    """Peaks of resident memory of a Python process of its own that runs `code`, wherever it prints `peak()`.

    From /proc: what getrusage and wait4 say begins with the memory of the process that started it.
    """
    peak = "def peak():\n    return next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
    words = [sys.executable, "-c", f"{peak}{code}", *argv]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [1024 * int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM")]
