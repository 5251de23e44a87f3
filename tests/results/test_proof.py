"""The proof of what is saved: answers that tie may differ, since rounding decides them; other weights are found."""

import gc
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertForQuestionAnswering, BertForTokenClassification

from finetune import model_selector, preprocess, run
from finetune.core.errors import ModelError
from finetune.data.folders import Preprocessed, read_rows
from finetune.data.table import Row
from finetune.models.loading import load_model
from finetune.models.prediction import predict_rows
from finetune.models.stored.configs import stored_state
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.results import proof
from finetune.results.limits import SERVED_ON
from finetune.tasks import load_task
from tests.conftest import finetune_words, sample_rows, write_jsonl
from tests.forking import Forks

QA, TAGS = "question_answering", "token_classification"


def prepared_ties(task: str, tiny_model: Path, folder: Path) -> Path:
    """Data in windows of 48 tokens, some questions unanswerable, and a model whose answers are rounding alone.

    What LayerNorm puts out has the sum 0, but for rounding, and the head takes nothing but that sum.
    """
    rows = {split: sample_rows(split, task)[:24] for split in ("train", "validation", "test")}
    if task == QA:
        for i, row in enumerate(row for some in rows.values() for row in some):
            if i % 8:  # six words that are all the answer, so that any part of them scores
                row["context"] = " ".join(row["context"].split()[:6])
            row["answers"] = (
                {"text": [row["context"]], "answer_start": [0]} if i % 8 else {"text": [], "answer_start": []}
            )
        model = BertForQuestionAnswering.from_pretrained(tiny_model)
    else:
        labels = sorted({tag for some in rows.values() for row in some for tag in row["ner_tags"]})
        classes = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        model = BertForTokenClassification.from_pretrained(tiny_model, **classes)
    head = model.get_submodule("qa_outputs" if task == QA else "classifier")
    with torch.no_grad():
        head.bias.zero_()
        head.weight.copy_(10 * torch.linspace(-1, 1, len(head.weight))[:, None].expand_as(head.weight))
    shutil.copytree(tiny_model, folder / "source")
    model.save_pretrained(folder / "source")
    given = ["--task", task, "--model_selector_output", str(folder / "model"), "--output_dir", str(folder / "data")]
    for split, some in rows.items():
        given += [f"--{split}_file_path", str(write_jsonl(folder / f"{split}.jsonl", some))]
    source = ["--pytorch_model_path", str(folder / "source"), "--output_dir", str(folder / "model")]
    model_selector.main(["--task", task, *source])
    preprocess.main([*given, "--max_seq_length", "48", "--doc_stride", "12"])
    return folder


def command(forks: Forks, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([forks.python, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=[QA, TAGS])
def ties(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_ties(request.param, tiny_model, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_ties_are_no_difference(forks: Forks, ties: Path) -> None:
    """Trained with one attention, loaded with another: the answers differ, and are alike."""
    given = {"max_steps": 1, "learning_rate": 1e-9, "attn_implementation": "eager"}
    ran = command(forks, "-m", "finetune.run", *finetune_words(ties, ties, **given))
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"equal to the trained model on \d+ rows", ran.stdout + ran.stderr)
    task = load_task(TAGS if ties.name.startswith(TAGS) else QA)
    folder, rows = ties / "pytorch", read_rows(Preprocessed.rows_file(ties / "data", "validation"))
    state, tokenizer = stored_state(folder, task), load_tokenizer(folder, task)
    answers, threads = {}, torch.get_num_threads()
    try:
        for attention, count in (("eager", 1), ("sdpa", 1), ("sdpa", 2)):
            torch.set_num_threads(count)
            model, _ = load_model(folder, task, state, attn_implementation=attention)
            answers[attention, count] = predict_rows(model, tokenizer, rows, task, state, 8)
    finally:
        torch.set_num_threads(threads)
    served = {how: [task.serving.present(p) for p in predictions] for how, predictions in answers.items()}
    kept = ("answer",) if task.name == QA else ("words", "tags")
    texts = {how: [[answer[name] for name in kept] for answer in found] for how, found in served.items()}
    assert texts["eager", 1] != texts["sdpa", 1]
    for expected in answers.values():
        for got in served.values():
            assert proof.differences(rows, expected, got, task, state) == []


def alive(kind: type) -> set[int]:
    return {id(found) for found in gc.get_objects() if isinstance(found, kind)}


@pytest.mark.slow
def test_one_model_at_a_time(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that only steps need lives on while it is proved; what doesn't fit on the device answers on the CPU."""
    gc.collect()
    before = {kind: alive(kind) for kind in (torch.optim.Optimizer, BertForQuestionAnswering)}
    seen = []

    def looking(ask: Callable[..., Any]) -> Callable[..., Any]:
        def look(*arguments: Any) -> Any:
            gc.collect()
            kinds = [len(alive(kind) - there) for kind, there in before.items()]
            seen.append((ask.__name__, *kinds, str(arguments[-1])))
            return ask(*arguments)

        return look

    monkeypatch.setattr(proof, "room_for", lambda model, device: False)
    for name in ("_reloaded", "_served"):
        monkeypatch.setattr(proof, name, looking(vars(proof)[name]))
    run.main(finetune_words(prepared, tmp_path, max_steps=1))
    assert seen == [("_reloaded", 0, 1, "cpu"), ("_served", 0, 1, "cpu")]
    said = capsys.readouterr().out
    assert "prove it on the CPU: cpu has no memory for another model in 32 bits" in said
    assert re.search(r"\ntime: start \d+ s, load \d+ s, train \d+ s, validate \d+ s, save \d+ s, prove \d+ s; ", said)


@pytest.mark.parametrize(("device", "asked"), [("cpu", "-1"), ("cuda:1", "1"), ("cuda", "0")])
def test_a_model_is_served_where_it_is_proved(device: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has, and what was asked for before is asked for after."""
    for before in (None, "3"):
        monkeypatch.delenv(SERVED_ON, raising=False)
        if before:
            monkeypatch.setenv(SERVED_ON, before)
        with proof._served_on(torch.device(device)):
            assert os.environ[SERVED_ON] == asked
        assert os.environ.get(SERVED_ON) == before


TAMPERED = """
import sys
from finetune import run
from finetune.core.process import run_main
from finetune.results import proof
from finetune.results.limits import SERVED_ON
from safetensors.torch import load_file, save_file

prove = proof.prove

def tampered(*arguments):
    for folder in arguments[-2:]:
        (file,) = folder.glob("model.safetensors") if folder.name == "pytorch" else folder.rglob("model.safetensors")
        (file.parent / "SHA256SUMS").unlink()
        weights = load_file(file)
        save_file({**weights, "qa_outputs.weight": -weights["qa_outputs.weight"]}, file, {"format": "pt"})
    prove(*arguments)

proof.prove = tampered
run_main(run.main)
"""


@pytest.mark.slow
def test_other_weights_are_found_and_all_is_kept(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    given = finetune_words(prepared, tmp_path, max_steps=2, eval_steps=1, evaluation_strategy="steps")
    ran = command(forks, "-c", TAMPERED, *given)
    assert ran.returncode == ModelError.exit_code
    faults = ran.stderr.split("model error: ")[1:]
    assert [fault.split(" is not the model that was trained; it is kept")[0] for fault in faults] == [
        str(tmp_path / "pytorch"), str(tmp_path / "mlflow"),
    ]  # fmt: skip
    found = [re.findall(r"validation row (\d+), trained / saved: .*score [\d.]+ / [\d.]+", fault) for fault in faults]
    assert found[0] == found[1] != []
    assert (tmp_path / "pytorch" / "model.safetensors").is_file() and (tmp_path / "mlflow" / "MLmodel").is_file()
    assert len(list(tmp_path.glob("pytorch/checkpoint-*/complete"))) == 2
    assert all("fix: --resume_from_checkpoint true" in fault for fault in faults)
    again = command(forks, "-m", "finetune.run", *given, "--resume_from_checkpoint", "true")
    assert again.returncode == 0, again.stderr
    assert "nothing is left to train" in again.stdout + again.stderr


# --- which rows ---


def chosen(rows: list[Row], lengths: list[list[int]], task: str = QA) -> list[int]:
    """The places of the rows that are chosen, of rows with windows of these lengths."""
    windows = {
        "input_ids": [[0] * length for of_row in lengths for length in of_row],
        "row": [i for i, of_row in enumerate(lengths) for _ in of_row],
    }
    found, count = proof.choose(rows, Dataset.from_dict(windows).with_format("numpy"), load_task(task))
    assert count == sum(len(lengths[row["row"]]) for row in found)
    return [row["row"] for row in found]


def questions(count: int, unanswerable: tuple[int, ...] = ()) -> list[Row]:
    return [{"row": i, "answers": {"text": [] if i in unanswerable else ["a"]}} for i in range(count)]


def test_rows_of_all_kinds_are_chosen() -> None:
    """Row 30 is the longest, 25 the first of several windows without an answer, 20 the only one without any."""
    lengths = [[9]] * 40
    lengths[20], lengths[25], lengths[28], lengths[30] = [], [9, 3], [9, 3], [40]
    assert chosen(questions(40, (25, 35)), lengths) == [0, 1, 2, 3, 4, 20, 25, 30]
    assert chosen(questions(40, (25, 35)), [[9]] * 40) == [0, 1, 2, 3, 4, 5, 6, 25]
    assert chosen(questions(3), [[9]] * 3) == [0, 1, 2]


def test_rows_of_all_tags_are_chosen() -> None:
    """The row with most of what is missing comes first; more than 12 are never asked."""
    tagged = [{"row": i, "tags": ["O"]} for i in range(50)]
    tagged[40]["tags"], tagged[41]["tags"], tagged[42]["tags"] = ["A"], ["A", "B", "C"], ["D"]
    assert chosen(tagged, [[5]] * 50, TAGS) == [0, 1, 2, 3, 4, 5, 41, 42]
    each = [{"row": i, "tags": [f"T{i}"]} for i in range(50)]
    assert chosen(each, [[5]] * 49 + [[6]], TAGS) == [*range(11), 49]


def test_rows_are_chosen_within_a_budget_of_tokens() -> None:
    """The longest that is no more than half of it, then whatever fits: a row of a million tokens is never asked."""
    windows = [500] * 90  # 45,000 tokens
    lengths = [[500] * 2000, *[windows] * 3, [500], [500] * 30, [500]]
    assert chosen(questions(7, (0, 6)), lengths) == [1, 2, 4, 6]
    assert chosen(questions(7, (0, 5)), lengths) == [1, 4, 5, 6]
    assert chosen(questions(3), [[500] * 2000, [500] * 300, []]) == [1]
