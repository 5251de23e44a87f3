"""The folders between components: round trips, and refusals that say what to run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.core.errors import HandoffError
from finetune.data.folders import Preprocessed, SelectedModel, SplitReport, read_rows, write_rows
from finetune.tasks.question_answering import rows as qa_rows
from finetune.tasks.token_classification import windows

TASK = "question_answering"
SELECTED = SelectedModel(
    TASK, "huggingface_id", "naïve/bert 🙂", "bert", "BertForQuestionAnswering", ("qa_outputs.weight",)
)
PREPROCESSED = Preprocessed(
    task=TASK,
    state={"max_seq_length": 128, "question_key": "Frage\u2028"},
    splits={
        "train": SplitReport(3, 0, 2, 5, {"empty question": {"count": 1, "action": "dropped", "rows": [2]}}),
        "test": SplitReport(1, 0, 1, 1, {}),
    },
    model_type="bert",
    split_source="files",
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def write_preprocessed(folder: Path) -> None:
    """A whole folder: rows and windows of both splits, then the JSON."""
    for split in PREPROCESSED.splits:
        write_rows(Preprocessed.rows_file(folder, split), [{"id": split}])
        Preprocessed.windows_folder(folder, split).mkdir()
    PREPROCESSED.write(folder)


def change(path: Path, **values: Any) -> None:
    """Set or, with None, remove keys of a JSON file."""
    record = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}), encoding="utf-8")


def test_selected_model_round_trip(tmp_path: Path) -> None:
    for record in (SELECTED, replace(SELECTED, new_weights=())):
        record.write(tmp_path / "made" / "on the way")
        assert SelectedModel.read(tmp_path / "made" / "on the way", TASK) == record


def test_preprocessed_round_trip(tmp_path: Path) -> None:
    write_preprocessed(tmp_path)
    assert Preprocessed.read(tmp_path, TASK) == PREPROCESSED


@pytest.mark.parametrize(
    ("record", "file", "fix"),
    [
        (
            SelectedModel,
            "model_selector_args.json",
            "pass the output folder of `python -m finetune.model_selector` as --model_selector_output",
        ),
        (
            Preprocessed,
            "preprocess.json",
            "pass the output folder of `python -m finetune.preprocess` as --preprocess_output",
        ),
    ],
)
def test_missing_folder(record: Any, file: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(HandoffError) as raised:
        record.read(tmp_path / "nowhere", TASK)
    (fault,) = raised.value.faults
    assert (fault.what, fault.fix) == (f"{tmp_path / 'nowhere'} has no {file}", fix)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(version: Any, tmp_path: Path) -> None:
    SELECTED.write(tmp_path)
    change(tmp_path / "model_selector_args.json", version=version)
    with pytest.raises(HandoffError, match=r"model_selector_args\.json is of another version") as raised:
        SelectedModel.read(tmp_path, TASK)
    assert raised.value.faults[0].fix == "run `python -m finetune.model_selector` of this version again"


def test_another_version_of_preprocess(tmp_path: Path) -> None:
    write_preprocessed(tmp_path)
    change(tmp_path / "preprocess.json", version=2)
    with pytest.raises(HandoffError, match=r"preprocess\.json is of another version"):
        Preprocessed.read(tmp_path, TASK)


def test_another_task(tmp_path: Path) -> None:
    SELECTED.write(tmp_path)
    write_preprocessed(tmp_path)
    for record in (SelectedModel, Preprocessed):
        with pytest.raises(HandoffError, match="was made for question_answering, not for translation") as raised:
            record.read(tmp_path, "translation")
        assert raised.value.faults[0].fix == "--task question_answering"


@pytest.mark.parametrize("missing", ["train/rows.jsonl", "train/windows"])
def test_incomplete_split(missing: str, tmp_path: Path) -> None:
    write_preprocessed(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(HandoffError) as raised:
        Preprocessed.read(tmp_path, TASK)
    assert raised.value.faults[0].what == f"{tmp_path / missing} is missing"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"splits": []}, "it.splits is a list, not an object"),
        ({"splits": {"train": {"rows_read": 1}}}, "it.splits.train has no 'problems'"),
        ({"model_type": 3}, "it.model_type is 3, not text"),
        ({"state": "a"}, "it.state is 'a', not an object"),
        ({"more": 1}, "it has an unknown entry 'more'"),
    ],
)
def test_a_field_of_another_type(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_preprocessed(tmp_path)
    change(tmp_path / "preprocess.json", **values)
    with pytest.raises(HandoffError, match=r"preprocess\.json is damaged") as raised:
        Preprocessed.read(tmp_path, TASK)
    assert raised.value.faults[0].why == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ('{"task": 1, "task": 2}', "the key 'task' is there twice"),
        (f'{{"version": {"9" * 5000}}}', "Exceeds the limit"),
        ("null", "it holds null, not an object"),
    ],
)
def test_json_that_is_none_of_ours(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "model_selector_args.json").write_text(text)
    with pytest.raises(HandoffError, match=r"model_selector_args\.json is damaged") as raised:
        SelectedModel.read(tmp_path, TASK)
    assert said in raised.value.faults[0].why


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"max_seq_length": "128"}, "state.max_seq_length is '128', not a whole number"),
        ({"max_seq_length": -1}, "state: max_seq_length is -1"),
        ({"labels": ["O", "O"]}, "state: labels has a class twice"),
        ({"labels": "O"}, "state.labels is 'O', not a list"),
        ({"scheme": "IOB9"}, "state: scheme is 'IOB9'"),
    ],
)
def test_a_state_of_other_types(state: dict[str, Any], said: str) -> None:
    whole = {"max_seq_length": 9, "pad_to_max_length": False, "doc_stride": 0, "labels": ["O"], "scheme": ""}
    preprocessed = replace(PREPROCESSED, state={**whole, "wordless": "O", **state})
    with pytest.raises(HandoffError) as raised:
        preprocessed.state_as(windows.State)
    assert raised.value.faults[0].why == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("7", "line 2: the row is 7, not an object"),
        ("{", "line 2: Expecting property name"),
        ('{"id": "a", "row": 1, "question": "q", "context": "c"}', "line 2: the row has no 'answers'"),
        (
            '{"id": "a", "row": 1, "question": "q", "context": "c", "answers": {"text": ["d"], "answer_start": [0]}}',
            "line 2: an answer doesn't stand at its offset",
        ),
    ],
)
def test_rows_that_are_none_of_the_task(line: str, said: str, tmp_path: Path) -> None:
    good = {"id": "a", "row": 1, "question": "q", "context": "c", "answers": None}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(HandoffError, match=r"rows\.jsonl is damaged") as raised:
        read_rows(tmp_path / "rows.jsonl", qa_rows.damage)
    assert said in raised.value.faults[0].why


def test_a_path_that_is_not_utf_8_is_written_and_read(tmp_path: Path) -> None:
    record = replace(SELECTED, source_name="models/\udcff")
    record.write(tmp_path)
    assert SelectedModel.read(tmp_path, TASK) == record


def test_rows_keep_line_separators_and_emoji(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive\rsix\r\nseven\n👩‍👩‍👧 🇩🇪 \ufeff\0"
    rows = [{"id": 1, "context": text, text: [None, True, 0.1]}, {"id": 2, "context": ""}]
    write_rows(tmp_path / "new" / "rows.jsonl", rows)
    assert read_rows(tmp_path / "new" / "rows.jsonl") == rows
    assert (tmp_path / "new" / "rows.jsonl").read_bytes().count(b"\n") == 2


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(TEXTS, TEXTS | st.integers() | st.none() | st.lists(TEXTS))))
def test_any_rows_come_back(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any_rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows
