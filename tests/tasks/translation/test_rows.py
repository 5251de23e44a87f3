"""Pairs as files hold them, and what is said of those that are odd."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.core.errors import DataError, ParameterError
from finetune.data.readers import read_table
from finetune.data.table import Audit
from finetune.models.stored.tokenizers import imported
from finetune.params.datapreprocess import TranslationPreprocessParams
from finetune.params.evaluation import TranslationEvaluationParams
from finetune.tasks.generation import targets
from finetune.tasks.translation import TASK, pairs, rows
from tests.conftest import write_jsonl
from tests.tasks.translation.samples import ENGLISH, GERMAN
from tests.writers import build_writer


def params(**given: Any) -> TranslationPreprocessParams:
    values = {"source_lang": "en", "target_lang": "de", **given}
    return TranslationPreprocessParams(model_selector_output=Path(), output_dir=Path(), **values)


def read(tmp_path: Path, records: list[dict[str, Any]], **given: Any) -> tuple[list[dict[str, Any]], Audit]:
    audit = Audit()
    return rows.validate(read_table(write_jsonl(tmp_path / "rows.jsonl", records)), params(**given), audit), audit


ROW = {"id": "1", "row": 1, "source": "A dog.", "target": "Ein Hund."}


@pytest.mark.parametrize(
    ("record", "given"),
    [
        ({"en": "A dog.", "de": "Ein Hund."}, {}),
        ({"en": " A dog. ", "de": "Ein Hund.\n"}, {}),
        ({"english": "A dog.", "german": "Ein Hund."}, {"source_key": "english", "target_key": "german"}),
        ({"translation": {"en": "A dog.", "de": "Ein Hund.", "fr": "Un chien."}}, {}),
        ({"translation": json.dumps({"en": "A dog.", "de": "Ein Hund."})}, {}),
        ({"translation": "{'en': 'A dog.', 'de': 'Ein Hund.'}"}, {}),
    ],
)
def test_forms_of_one_pair(tmp_path: Path, record: dict[str, Any], given: dict[str, str]) -> None:
    found, audit = read(tmp_path, [record], **given)
    assert found == [ROW] and not audit.problems


def test_hub_names_with_codes(tmp_path: Path) -> None:
    """The code of a multilingual model, and columns that are called otherwise."""
    record = {"translation": {"en": "A dog.", "de": "Ein Hund."}}
    given = {"source_lang": "eng_Latn", "target_lang": "deu_Latn", "source_key": "en", "target_key": "de"}
    assert read(tmp_path, [record], **given)[0] == [ROW]


def test_one_side_empty(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"en": "A dog.", "de": "Ein Hund."},
        {"en": None, "de": "Eine Katze."},
        {"en": "A cat.", "de": " "},
        {"en": ["A", "cat"], "de": "Eine Katze."},
        {"en": 1843, "de": 1843},
    ]
    found, audit = read(tmp_path, records)
    assert [(row["source"], row["target"]) for row in found] == [
        ("A dog.", "Ein Hund."),
        ("A cat.", None),
        ("1843", "1843"),
    ]
    assert {reason: problem["rows"] for reason, problem in audit.problems.items()} == {
        "no source text": [2],
        "the source is not text": [4],
    }


def test_a_missing_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'en'") as caught:
        read(tmp_path, [{"eng": "A dog.", "de": "Ein Hund."}])
    assert "--source_lang with one of: eng, de" in caught.value.faults[0].fix
    with pytest.raises(DataError, match="no column 'german'"):
        read(tmp_path, [{"en": "A dog.", "de": "Ein Hund."}], target_key="german")
    with pytest.raises(DataError, match="no column 'de'"):  # which says more than that no row has a target
        read(tmp_path, [{"en": "A dog.", "german": "Ein Hund."}])
    given = TranslationEvaluationParams(evaluation_result=Path(), source_lang="en", target_lang="de")
    found = rows.validate(read_table(write_jsonl(tmp_path / "rows.jsonl", [{"en": "A dog."}])), given, Audit())
    assert found[0]["target"] is None  # for prediction


def test_evaluation_of_a_file_needs_the_columns(tmp_path: Path) -> None:
    table = read_table(write_jsonl(tmp_path / "rows.jsonl", [{"en": "A dog."}]))
    with pytest.raises(ParameterError, match="--target_lang is missing") as caught:
        rows.validate(table, TranslationEvaluationParams(evaluation_result=Path(), source_lang="en"), Audit())
    assert len(caught.value.faults) == 1


def test_swapped_pairs_are_said(tmp_path: Path) -> None:
    records = [{"en": "A dog.", "de": "Собака."}] * 5 + [{"en": "Кошка.", "de": "A cat."}]
    _, audit = read(tmp_path, records)
    assert audit.problems == {
        "source and target seem to be swapped: CYRILLIC to LATIN": {"action": "kept", "count": 1, "rows": [6]}
    }
    whole = [{"en": "Собака.", "ru": "A dog."}] * 3
    said = "warning: the columns seem to be swapped: the text of source_lang en is in CYRILLIC, target_lang ru in LATIN"
    assert read(tmp_path, whole, target_lang="ru")[1].notes == [
        f"{said} letters; to translate from en, --source_key ru --target_key en"
    ]
    assert read(tmp_path, whole, source_lang="ru_RU", target_lang="en", source_key="en", target_key="ru")[1].notes == []
    short = [{"en": "A dog.", "de": "Ein Hund."}, {"en": "Ein Hund.", "de": "A dog."}]
    assert not read(tmp_path, short)[1].problems
    german = [{"here": one, "there": other} for one, other in zip(GERMAN * 9, ENGLISH * 9, strict=True)]
    (note,) = read(tmp_path, german, source_key="here", target_key="there")[1].notes
    assert note.endswith("to translate from en, --source_key there --target_key here")


def test_remarks_on_the_pairs(tmp_path: Path) -> None:
    train, _ = read(tmp_path, [{"en": "A dog.", "de": "Ein Hund."}, {"en": "Tom &amp; Eve", "de": "Tom &amp; Eva"}])
    test, _ = read(
        tmp_path, [{"en": "A dog.", "de": "Ein Hund."}, {"en": "Oslo", "de": "Oslo"}, {"en": "R&D;", "de": "F&E"}]
    )
    state = pairs.State(
        max_seq_length=9, pad_to_max_length=False, max_target_length=9, num_beams=1, decoder_start_token_id=0,
        forced_bos_token_id=None, source_lang="en", target_lang="de", prefix="",
    )  # fmt: skip
    lines = pairs.derived(params(), state, {"train": train, "test": test})
    assert lines == [
        "max_target_length: 9, the model's maximum",
        "train: 1 of 2 pairs hold HTML entities, as &amp;, which are taken as they are",
        "test: 1 of 3 pairs stand in train too: what is measured on them is not what the model does with new ones",
        "test: 1 of 3 pairs have the source itself as their target",
    ]


def test_what_is_cut_off_is_not_learnt_from(tmp_path: Path) -> None:
    """By tokens, each side with its own parameter; evaluation keeps such rows and says so."""
    task_rows = [
        {"id": str(i), "row": i, "source": source, "target": target}
        for i, (source, target) in enumerate([("A dog.", "Baro."), ("A dog. " * 9, "Baro."), ("A dog.", "Baro. " * 9)])
    ]
    model = imported(build_writer("t5", tmp_path / "t5"), TASK)
    state = pairs.fit(params(target_lang="tav", max_seq_length=12, max_target_length=12), {}, model)
    columns = pairs.encode(task_rows, model.tokenizer, state)
    assert max(map(len, columns["input_ids"])) == max(map(len, columns["target_ids"])) == 12
    labels, lost = pairs.label(task_rows, columns, state)
    assert {row: found.reason for row, found in lost.items()} == {
        1: "its source has more than 12 tokens (max_seq_length)",
        2: "its target has more than 12 tokens (max_target_length)",
    }
    assert lost[2].fix == "split long texts, or --max_target_length -1 if the model's maximum is more"
    assert pairs.unanswerable(task_rows, columns, state).keys() == lost.keys()
    assert labels["decoder_input_ids"][0] == [state.decoder_start_token_id, *labels["labels"][0][:-1]]
    assert pairs.beyond(targets.lengths(columns), state) == [
        "33.3% of the targets have more than 12 tokens, and can't be written whole (max_target_length)"
    ]
