"""Preprocess through its command line: files -> splits, windows and the account of every row."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from finetune import preprocess
from finetune.core.errors import DataError, HandoffError, ParameterError
from finetune.core.process import run_main
from finetune.data.folders import SPLITS, Preprocessed, read_rows
from tests.conftest import write_jsonl

Row = dict[str, Any]


def make_rows(contexts: int, first: int = 0, questions: int = 3) -> list[Row]:
    """Several questions for each context, every one with its own answer."""
    rows = []
    for i in range(first, first + contexts):
        context = f"In year {1000 + i} the ship number {i} sailed north."
        for k, text in enumerate((str(1000 + i), f"number {i}", "north")[:questions]):
            answers = {"text": [text], "answer_start": [context.index(text)]}
            rows.append({"id": f"{i}-{k}", "question": f"Question {k}?", "context": context, "answers": answers})
    return rows


def words(prepared: Path, output: Path, **parameters: Any) -> list[str]:
    given = {"model_selector_output": prepared / "model", "output_dir": output, **parameters}
    return [
        "--task", "question_answering", *(word for name, v in given.items() for word in (f"--{name}", str(v))),
    ]  # fmt: skip


def run(prepared: Path, output: Path, **parameters: Any) -> Preprocessed:
    preprocess.main(words(prepared, output, **parameters))
    return Preprocessed.read(output, "question_answering")


def rows_of(output: Path) -> dict[str, list[Row]]:
    return {split: read_rows(Preprocessed.rows_file(output, split)) for split in SPLITS}


def contexts_of(rows: list[Row]) -> set[str]:
    return {row["context"] for row in rows}


def disjoint(rows: dict[str, list[Row]]) -> bool:
    return len(set().union(*map(contexts_of, rows.values()))) == sum(len(contexts_of(r)) for r in rows.values())


# --- splits ---


def test_train_alone_is_split_80_10_10(prepared: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", make_rows(50))
    made = run(prepared, tmp_path / "a", train_file_path=file)
    rows = rows_of(tmp_path / "a")
    assert {split: len(found) for split, found in rows.items()} == {"train": 120, "validation": 15, "test": 15}
    assert disjoint(rows)
    assert sorted(row["id"] for found in rows.values() for row in found) == sorted(r["id"] for r in make_rows(50))
    assert "10%" in made.split_source
    run(prepared, tmp_path / "b", train_file_path=file)
    assert rows_of(tmp_path / "b") == rows


@pytest.mark.parametrize(("given", "missing"), [("validation", "test"), ("test", "validation")])
def test_one_missing_split_gets_a_fifth(prepared: Path, tmp_path: Path, given: str, missing: str) -> None:
    files = {
        "train_file_path": write_jsonl(tmp_path / "train.jsonl", make_rows(20)),
        f"{given}_file_path": write_jsonl(tmp_path / "given.jsonl", make_rows(5, first=100)),
    }
    run(prepared, tmp_path / "out", **files)
    rows = rows_of(tmp_path / "out")
    assert (len(rows["train"]), len(rows[missing])) == (48, 12)
    assert [row["id"] for row in rows[given]] == [row["id"] for row in make_rows(5, first=100)]
    assert disjoint(rows)


def test_given_splits_are_kept_whole(prepared: Path, tmp_path: Path) -> None:
    files = {f"{s}_file_path": write_jsonl(tmp_path / f"{s}.jsonl", make_rows(4, 10 * i)) for i, s in enumerate(SPLITS)}
    made = run(prepared, tmp_path / "out", **files)
    assert made.split_source == "given"
    assert [made.splits[split].rows_kept for split in SPLITS] == [12, 12, 12]
    assert [row["id"] for row in rows_of(tmp_path / "out")["test"]] == [row["id"] for row in make_rows(4, 20)]


@pytest.mark.parametrize("contexts", [1, 2])
def test_too_few_contexts(prepared: Path, tmp_path: Path, contexts: int) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", make_rows(contexts))
    with pytest.raises(DataError, match=rf"{contexts} distinct contexts can't be split .*") as caught:
        run(prepared, tmp_path / "out", train_file_path=file)
    assert "--validation_file_path FILE --test_file_path FILE" in str(caught.value)


def test_three_contexts_make_three_splits(prepared: Path, tmp_path: Path) -> None:
    run(prepared, tmp_path / "out", train_file_path=write_jsonl(tmp_path / "train.jsonl", make_rows(3)))
    assert [len(contexts_of(found)) for found in rows_of(tmp_path / "out").values()] == [1, 1, 1]


def test_sampling(prepared: Path, tmp_path: Path) -> None:
    """Rows are drawn from all of the file, not from its head, and keep their order."""
    file = write_jsonl(tmp_path / "train.jsonl", make_rows(100))
    made = run(prepared, tmp_path / "out", train_file_path=file, max_train_samples=40, max_eval_samples=7)
    assert [made.splits[split].rows_kept for split in SPLITS] == [40, 7, 7]
    run(prepared, tmp_path / "all", train_file_path=file, max_train_samples=1000)
    drawn, everything = (rows_of(tmp_path / name)["train"] for name in ("out", "all"))
    places = [everything.index(row) for row in drawn]
    assert places == sorted(places)
    assert places[-1] - places[0] > 150


# --- what is written ---


def test_folder(prepared: Path, tmp_path: Path) -> None:
    """Parameters travel, windows fit the state and have labels; the test split is rows alone."""
    file = write_jsonl(tmp_path / "train.jsonl", make_rows(30))
    values = {"max_seq_length": 24, "doc_stride": 3, "n_best_size": 7, "max_answer_length_in_tokens": 9}
    made = run(prepared, tmp_path / "out", train_file_path=file, **values, pad_to_max_length="true", batch_size=4)
    assert made.task == "question_answering"
    assert made.model_type == "bert"
    expected = {**values, "pad_to_max_length": True, "no_answer": False, "null_threshold": 0.0}
    assert made.state == expected
    stored = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert stored["version"] == 1
    assert stored["state"] == expected
    assert set(stored["splits"]) == set(SPLITS)
    labels = {"start_positions", "end_positions"}
    for split in SPLITS[:2]:
        windows = datasets.load_from_disk(Preprocessed.windows_folder(tmp_path / "out", split))
        assert len(windows) == made.splits[split].windows >= made.splits[split].rows_kept
        assert {len(ids) for ids in windows["input_ids"]} == {24}
        assert labels <= set(windows.column_names)
        assert ("row" in windows.column_names) == (split != "train")
    assert made.splits["test"].windows == 0 and not (tmp_path / "out" / "test" / "windows").exists()
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_batch_size_changes_nothing(prepared: Path, tmp_path: Path, batch_size: int) -> None:
    """The row column counts through all batches, also where rows were dropped before."""
    bad = {**make_rows(1)[0], "question": "word " * 40}
    rows = [bad, *make_rows(12)]
    files = {f"{split}_file_path": write_jsonl(tmp_path / f"{split}.jsonl", rows) for split in SPLITS}
    run(prepared, tmp_path / "out", **files, max_seq_length=30, doc_stride=4, batch_size=batch_size)
    windows = datasets.load_from_disk(Preprocessed.windows_folder(tmp_path / "out", "validation"))
    assert sorted(set(windows["row"])) == list(range(1, 37))
    assert len(rows_of(tmp_path / "out")["train"]) == 36


def test_model_length_is_the_default(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", make_rows(4))
    assert run(prepared, tmp_path / "a", train_file_path=file).state["max_seq_length"] == 160
    assert "max_seq_length: 160, the model's maximum" in capsys.readouterr().out
    assert run(prepared, tmp_path / "b", train_file_path=file, max_seq_length=400).state["max_seq_length"] == 160
    assert "160 instead of 400" in capsys.readouterr().out
    made = run(prepared, tmp_path / "c", train_file_path=file, max_seq_length=40)
    assert f"doc_stride: {made.state['doc_stride']} instead of 128" in capsys.readouterr().out


def test_rerun_into_the_same_folder(prepared: Path, tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "first.jsonl", make_rows(30))
    second = write_jsonl(tmp_path / "second.jsonl", make_rows(4, first=50))
    run(prepared, tmp_path / "out", train_file_path=first)
    run(prepared, tmp_path / "out", train_file_path=second)
    run(prepared, tmp_path / "fresh", train_file_path=second)
    files = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "fresh") for path in (tmp_path / "fresh").rglob("*") if path.is_file()}
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "fresh")


def test_failed_rerun_leaves_no_whole_folder(prepared: Path, tmp_path: Path) -> None:
    """preprocess.json means that the folder is whole, so a run that fails at its end must not leave an older one."""
    rows = make_rows(5)
    good = write_jsonl(tmp_path / "good.jsonl", rows)
    bad = write_jsonl(tmp_path / "bad.jsonl", [rows[0], *({**row, "question": "word " * 40} for row in rows[1:])])
    given = {"validation_file_path": good, "test_file_path": good, "max_seq_length": 30, "doc_stride": 4}
    run(prepared, tmp_path / "out", train_file_path=good, **given)
    with pytest.raises(DataError, match="14 of 15 rows have to be dropped"):
        run(prepared, tmp_path / "out", train_file_path=bad, **given)
    with pytest.raises(HandoffError, match=r"preprocess\.json"):
        Preprocessed.read(tmp_path / "out", "question_answering")


# --- dropped rows ---


def test_dropped_rows_are_counted(prepared: Path, tmp_path: Path) -> None:
    rows = make_rows(20)
    rows[3] = {**rows[3], "question": " "}
    rows[7] = {**rows[7], "answers": {"text": ["nowhere"], "answer_start": [0]}}
    rows[8] = {**rows[8], "answers": {"text": ["north"], "answer_start": [rows[8]["context"].index("north") - 2]}}
    rows[9] = {**rows[9], "answers": None}
    files = {f"{split}_file_path": write_jsonl(tmp_path / f"{split}.jsonl", rows) for split in SPLITS}
    made = run(prepared, tmp_path / "out", **files)
    dropped = {"no question": [4], "the answer is not in the context": [8]}
    for split, unlabelled in (("train", {"no answers": [10]}), ("validation", {"no answers": [10]}), ("test", {})):
        report = made.splits[split]
        problems = {r: p["rows"] for r, p in report.problems.items() if p["action"] == "dropped"}
        assert problems == {**dropped, **unlabelled}
        assert report.problems["answer_start was off; the answer stands near by"]["rows"] == [9]
        assert (report.rows_read, report.rows_kept) == (60, 60 - len(problems))
    assert [row["row"] for row in rows_of(tmp_path / "out")["train"]][:8] == [1, 2, 3, 5, 6, 7, 9, 11]


def test_too_many_dropped_rows(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "question": ""} if i % 4 == 0 else row for i, row in enumerate(make_rows(20))]
    files = {f"{split}_file_path": write_jsonl(tmp_path / f"{split}.jsonl", rows) for split in SPLITS}
    with pytest.raises(SystemExit) as ended:
        run_main(preprocess.main, words(prepared, tmp_path / "out", **files))
    assert ended.value.code == DataError.exit_code == 3
    shown = capsys.readouterr().err
    for part in ("15 of 60 rows have to be dropped", "no question (rows 1, 5, 9", "--max_dropped_fraction 0.26"):
        assert part in shown
    assert shown.count("data error") == 3
    made = run(prepared, tmp_path / "out", **files, max_dropped_fraction=0.26)
    assert made.splits["train"].rows_kept == 45


def test_rows_that_give_no_label_count_as_dropped(prepared: Path, tmp_path: Path) -> None:
    rows = [{**row, "question": "word " * 40} if i % 2 else row for i, row in enumerate(make_rows(20))]
    file, good = (write_jsonl(tmp_path / f"{i}.jsonl", r) for i, r in enumerate((rows, make_rows(5, first=50))))
    files = {"train_file_path": file, "validation_file_path": good, "test_file_path": good}
    with pytest.raises(DataError, match="30 of 60 rows have to be dropped"):
        run(prepared, tmp_path / "out", **files, max_seq_length=30, doc_stride=4)


def test_dropped_fraction_is_of_the_rows_that_are_used(prepared: Path, tmp_path: Path) -> None:
    """Half of the drawn rows being unusable must not pass because the file is much longer."""
    rows = [{**row, "question": "word " * 40} if i % 2 else row for i, row in enumerate(make_rows(200))]
    file, good = (write_jsonl(tmp_path / f"{i}.jsonl", r) for i, r in enumerate((rows, make_rows(5, first=500))))
    files = {"train_file_path": file, "validation_file_path": good, "test_file_path": good}
    with pytest.raises(DataError, match="rows have to be dropped"):
        run(prepared, tmp_path / "out", **files, max_seq_length=30, doc_stride=4, max_train_samples=30)


def test_losses_are_told_before_splitting(prepared: Path, tmp_path: Path) -> None:
    """Where all rows have to go, there are no contexts to split either; that is not the reason."""
    gone = [{**row, "answers": {"text": ["nowhere"], "answer_start": [0]}} for row in make_rows(20)]
    unannotated = [{**row, "answers": None} for row in make_rows(20)]
    for rows, reason in ((gone, "the answer is not in the context"), (unannotated, "no answers")):
        file = write_jsonl(tmp_path / "train.jsonl", rows)
        with pytest.raises(DataError) as caught:
            run(prepared, tmp_path / "out", train_file_path=file)
        (fault,) = caught.value.faults
        assert (fault.what, fault.where) == ("no usable row is left", "train")
        assert f"dropped 60: {reason}" in fault.why


def test_rows_without_gold_are_dropped_before_splitting(prepared: Path, tmp_path: Path) -> None:
    """So that none of them counts in the test split that is made of train."""
    rows = [{**row, "answers": None} if i % 12 == 0 else row for i, row in enumerate(make_rows(40))]
    made = run(prepared, tmp_path / "out", train_file_path=write_jsonl(tmp_path / "train.jsonl", rows))
    assert made.splits["train"].problems["no answers"]["count"] == 10
    assert sum(made.splits[split].rows_kept for split in SPLITS) == 110
    assert sum(made.splits[split].rows_read for split in SPLITS) == 120
    assert all(row["answers"] for kept in rows_of(tmp_path / "out").values() for row in kept)


LONG_ANSWER = {"context": "north " * 60, "answers": {"text": [("north " * 40).strip()], "answer_start": [0]}}


@pytest.mark.parametrize(
    ("length", "changed", "fix"),
    [
        (40, {"question": "word " * 30}, "fix: --doc_stride below 9, --max_seq_length -1, or allow it"),
        (160, {"question": "word " * 148}, "fix: --doc_stride below 9, or allow it"),
        (40, LONG_ANSWER, "fix: --doc_stride above 9, --max_seq_length -1, or allow it"),
        (40, {"question": ""}, "fix: mend the file, check the column parameters, or allow it"),
    ],
)
def test_the_fix_is_of_the_cause(prepared: Path, tmp_path: Path, length: int, changed: Row, fix: str) -> None:
    rows = [{**row, **changed} if i % 2 else row for i, row in enumerate(make_rows(20))]
    file, good = (write_jsonl(tmp_path / f"{i}.jsonl", r) for i, r in enumerate((rows, make_rows(5, first=50))))
    given = {"train_file_path": file, "validation_file_path": good, "test_file_path": good}
    with pytest.raises(DataError) as caught:
        run(prepared, tmp_path / "out", **given, max_seq_length=length, doc_stride=9)
    assert f"{fix}: --max_dropped_fraction 0.51" in str(caught.value)


def test_a_reason_for_each_cause(prepared: Path, tmp_path: Path) -> None:
    """Training drops such rows, validation keeps them: they can't be answered."""
    rows = make_rows(20)
    rows[2]["question"] = "word " * 30
    rows[5] |= LONG_ANSWER
    rows[9] |= {"context": "a \u200e c", "answers": {"text": ["\u200e"], "answer_start": [2]}}
    files = {f"{split}_file_path": write_jsonl(tmp_path / f"{split}.jsonl", rows) for split in SPLITS}
    made = run(prepared, tmp_path / "out", **files, max_seq_length=40, doc_stride=9)
    parts = ("beside doc_stride 9 tokens of context", "longer than the doc_stride 9 tokens", "that the tokenizer drops")
    for split, action in (("train", "dropped"), ("validation", "kept")):
        problems = made.splits[split].problems
        assert [(p["action"], p["rows"]) for p in problems.values()] == [(action, [n]) for n in (3, 6, 10)]
        assert all(part in reason for part, reason in zip(parts, problems, strict=True))
    assert [made.splits[split].rows_kept for split in SPLITS] == [57, 60, 60]


def test_validation_without_a_window(prepared: Path, tmp_path: Path) -> None:
    rows = [{**row, "question": "word " * 30} for row in make_rows(5)]
    files = {"train_file_path": write_jsonl(tmp_path / "train.jsonl", make_rows(9, first=50))}
    files["validation_file_path"] = files["test_file_path"] = write_jsonl(tmp_path / "other.jsonl", rows)
    said = r"no row gives a window\n.*validation\n.*doc_stride 9.*\n.*--doc_stride below 9, --max_seq_length -1$"
    with pytest.raises(DataError, match=said):
        run(prepared, tmp_path / "out", **files, max_seq_length=40, doc_stride=9)
    write_jsonl(tmp_path / "other.jsonl", [{**row, "question": "word " * 148} for row in rows])
    with pytest.raises(DataError, match=r"no row gives a window[\s\S]*fix: --doc_stride below 9$"):
        run(prepared, tmp_path / "out", **files, doc_stride=9)


def test_answers_too_long_to_be_predicted(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{split}_file_path": write_jsonl(tmp_path / f"{split}.jsonl", make_rows(8)) for split in SPLITS}
    made = run(prepared, tmp_path / "out", **files, max_answer_length_in_tokens=4)
    shown = capsys.readouterr().out
    assert " gold answers" not in shown
    made = run(prepared, tmp_path / "out", **files, max_answer_length_in_tokens=1)
    shown = capsys.readouterr().out
    found = re.findall(r"(train|validation): (\d+) of 24 gold answers .* max_answer_length_in_tokens \(1\)", shown)
    assert found == [("train", found[0][1]), ("validation", found[0][1])] and 8 <= int(found[0][1]) <= 16
    (problem,) = made.splits["validation"].problems.values()
    assert (problem["action"], problem["count"]) == ("kept", int(found[0][1]))
    assert made.splits["train"].problems == {}


def test_no_usable_row(prepared: Path, tmp_path: Path) -> None:
    rows = [{**row, "question": ""} for row in make_rows(5)]
    file, good = (write_jsonl(tmp_path / f"{i}.jsonl", r) for i, r in enumerate((rows, make_rows(5, first=50))))
    with pytest.raises(DataError, match="no usable row is left"):
        run(prepared, tmp_path / "out", train_file_path=good, validation_file_path=file, test_file_path=good)


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_windows_too_short_for_any_question(prepared: Path, tmp_path: Path, length: int) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", make_rows(5))
    with pytest.raises(DataError):
        run(prepared, tmp_path / "out", train_file_path=file, max_seq_length=length)


# --- sources ---


def test_csv_with_answers_as_json_text(prepared: Path, tmp_path: Path) -> None:
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "question", "context", "answers"])
        writer.writeheader()
        writer.writerows({**row, "answers": json.dumps(row["answers"])} for row in make_rows(10))
    run(prepared, tmp_path / "csv", train_file_path=tmp_path / "train.csv")
    run(prepared, tmp_path / "jsonl", train_file_path=write_jsonl(tmp_path / "train.jsonl", make_rows(10)))

    def answers(folder: Path) -> dict[str, Any]:
        return {row["id"]: row["answers"] for row in rows_of(folder)["train"]}

    assert answers(tmp_path / "csv") == answers(tmp_path / "jsonl")


def test_custom_columns(prepared: Path, tmp_path: Path) -> None:
    rows = [
        {"q": r["question"], "p": r["context"], "a": {"t": r["answers"]["text"], "s": r["answers"]["answer_start"]}}
        for r in make_rows(10)
    ]
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    columns = {
        "question_key": "q", "context_key": "p", "answers_key": "a", "answer_text_key": "t", "answer_start_key": "s",
    }  # fmt: skip
    run(prepared, tmp_path / "out", train_file_path=file, **columns)
    assert contexts_of(rows_of(tmp_path / "out")["train"]) <= {row["p"] for row in rows}
    with pytest.raises(DataError, match=r"no column 'question'[\s\S]*--question_key with one of: q, p, a"):
        run(prepared, tmp_path / "out", train_file_path=file)


def test_mltable_wins_over_the_file(prepared: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.mkdir()
    write_jsonl(table / "part.jsonl", make_rows(10, first=50))
    (table / "MLTable").write_text("paths:\n  - file: ./part.jsonl\ntransformations:\n  - read_json_lines\n")
    file = write_jsonl(tmp_path / "train.jsonl", make_rows(10))
    run(prepared, tmp_path / "out", train_file_path=file, train_mltable_path=table)
    assert contexts_of(rows_of(tmp_path / "out")["train"]) <= contexts_of(make_rows(10, first=50))


def test_dataset_name_is_a_local_folder(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i, split in enumerate(SPLITS):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", make_rows(6, first=10 * i))
    made = run(prepared, tmp_path / "out", dataset_name=tmp_path / "data")
    assert made.split_source == "given"
    rows = rows_of(tmp_path / "out")
    assert [contexts_of(rows[split]) for split in SPLITS] == [contexts_of(make_rows(6, 10 * i)) for i in range(3)]
    assert rows["train"][0]["answers"] == make_rows(1)[0]["answers"]


def test_rows_of_another_folder_of_the_same_name(prepared: Path, tmp_path: Path) -> None:
    """The cache of `datasets` knows a folder with configurations by its last name alone."""
    for i, parent in enumerate("ab"):
        folder = tmp_path / parent / "data"
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n")
        write_jsonl(folder / "train.jsonl", make_rows(12, first=20 * i))
        run(prepared, tmp_path / "out", dataset_name=folder)
        rows = rows_of(tmp_path / "out")
        assert contexts_of([row for part in rows.values() for row in part]) == contexts_of(make_rows(12, 20 * i))


def test_dataset_that_is_not_there(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="none is not there"):
        run(prepared, tmp_path / "out", dataset_name=tmp_path / "none")


def test_no_training_rows(prepared: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "test.jsonl", make_rows(3))
    with pytest.raises(ParameterError, match="no training rows"):
        run(prepared, tmp_path / "out", test_file_path=file)


def test_model_import_is_missing(prepared: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", make_rows(5))
    (tmp_path / "none").mkdir()
    with pytest.raises(HandoffError, match=r"finetune\.model_selector"):
        run(prepared, tmp_path / "out", train_file_path=file, model_selector_output=tmp_path / "none")


@pytest.mark.parametrize("name", ["squad_v1", "squad_v2", "xquad"])
def test_real_rows_are_all_kept(real_data: Path, prepared: Path, tmp_path: Path, name: str) -> None:
    smoke = real_data / name / "smoke"
    files = {"train_file_path": smoke / "zh.jsonl"}
    if name != "xquad":
        files = {f"{split}_file_path": smoke / f"{split}.jsonl" for split in SPLITS}
    made = run(prepared, tmp_path / "out", **files, doc_stride=32)
    assert sum(report.rows_kept for report in made.splits.values()) == (100 if name == "xquad" else 600)
    assert made.state["no_answer"] == (name == "squad_v2")
