"""Random rows in a file, through the real preprocess, and back through decoding: for every kind of tokenizer."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from finetune import preprocess
from finetune.data.batches import as_windows
from finetune.data.folders import SPLITS, Preprocessed, SelectedModel, read_rows
from finetune.data.table import Row
from finetune.tasks.question_answering import spans as qa_spans
from finetune.tasks.question_answering import windows as qa_windows
from tests.conftest import write_jsonl
from tests.tasks.question_answering.conftest import PARAGRAPHS, QUESTIONS, characters, context_tokens, peaked

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
GOOD = {"question": "a?", "context": "a bcd e", "answers": {"text": ["bcd"], "answer_start": [2]}}


@st.composite
def annotated(draw: st.DrawFn) -> Row:
    """A row whose answer stands in the context, is there none, or stands beside the given offset."""
    context = draw(st.one_of(PARAGRAPHS, ANY_TEXT))
    first, after = sorted(draw(st.tuples(*[st.integers(0, len(context))] * 2)))
    text, off = context[first : min(after, first + 30)], draw(st.sampled_from([0, 0, 0, 3, -1, 60]))
    answers = draw(st.sampled_from([{"text": [text], "answer_start": [first + off]}, {"text": [], "answer_start": []}]))
    return {"question": draw(st.one_of(QUESTIONS, ANY_TEXT)), "context": context, "answers": answers}


@pytest.fixture(scope="module")
def selected(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of model import, with that tokenizer."""
    folder = tmp_path_factory.mktemp("selected")
    tokenizer.save_pretrained(SelectedModel.model_folder(folder))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)
    BertModel(config).save_pretrained(SelectedModel.model_folder(folder))
    SelectedModel("question_answering", "pytorch_model_path", "made", "bert", "Bert", ()).write(folder)
    return folder


FOLDERS = count()


@settings(max_examples=12, deadline=None)
@given(st.lists(annotated(), max_size=5), st.integers(16, 48), st.booleans())
def test_every_row_is_kept_or_counted_and_answers_survive(
    selected: Path, tmp_path_factory: pytest.TempPathFactory, rows: list[Row], length: int, pad: bool
) -> None:
    given_folder = tmp_path_factory.mktemp(f"rows{next(FOLDERS)}")
    file, folder = write_jsonl(given_folder / "rows.jsonl", [GOOD, *rows]), given_folder / "preprocessed"
    words = ["--task", "question_answering", "--model_selector_output", str(selected), "--output_dir", str(folder)]
    words += ["--max_seq_length", str(length), "--doc_stride", "4", "--max_answer_length_in_tokens", str(length)]
    words += ["--pad_to_max_length", str(pad), "--max_dropped_fraction", "1", "--batch_size", "2"]
    preprocess.main([*words, *(word for split in SPLITS for word in (f"--{split}_file_path", str(file)))])

    made = Preprocessed.read(folder, "question_answering")
    kept = {split: read_rows(Preprocessed.rows_file(folder, split)) for split in SPLITS}
    for split in SPLITS:
        problems = made.splits[split].problems.values()
        dropped = [number for problem in problems if problem["action"] == "dropped" for number in problem["rows"]]
        assert sorted([*(row["row"] for row in kept[split]), *dropped]) == list(range(1, len(rows) + 2))
        assert sum(p["count"] for p in problems if p["action"] == "dropped") == len(dropped)
    for row in kept["test"]:
        given_row = [GOOD, *rows][row["row"] - 1]
        assert (row["question"], row["context"]) == (given_row["question"], given_row["context"])
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text

    state = qa_windows.State(**json.loads((folder / "preprocess.json").read_text())["state"])
    windows = datasets.load_from_disk(Preprocessed.windows_folder(folder, "validation")).with_format("numpy")[:]
    learnable = {i for i, row in enumerate(kept["validation"]) if not row["answers"]["text"]} & set(windows["row"])
    for i, window in enumerate(as_windows(windows)):
        if window["start_positions"] == window["end_positions"] == window["null_position"]:
            continue
        row = kept["validation"][window["row"]]
        outputs, batch = peaked(windows, windows, i)
        reduced = {name: tensor.numpy() for name, tensor in qa_spans.reduce(outputs, batch, state).items()}
        (prediction,) = qa_spans.decode({**reduced, "row": reduced["row"] * 0}, [row], state)
        text = row["answers"]["text"][0].strip()
        start = row["context"].find(text, row["answers"]["answer_start"][0])
        of_row = [k for k, owner in enumerate(windows["row"]) if owner == window["row"]]
        covered = set().union(*(characters(context_tokens(windows, k)) for k in of_row))
        within = covered & set(range(start, start + len(text)))
        assert prediction["start"] <= min(within) <= max(within) < prediction["end"]
        assert row is not kept["validation"][0] or prediction["span_text"] == "bcd"
        learnable.add(int(window["row"]))
    assert [row["row"] for row in kept["train"]] == [kept["validation"][i]["row"] for i in sorted(learnable)]
