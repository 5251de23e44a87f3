"""Columns and rows that are swapped, in two scripts and in one."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from finetune.data.table import Audit
from finetune.tasks.translation import swapped
from tests.tasks.translation.samples import ENGLISH, FRENCH, GERMAN, RUSSIAN


def made(sources: Sequence[str], targets: Sequence[str | None]) -> list[dict[str, Any]]:
    texts = enumerate(zip(sources, targets, strict=True), 1)
    return [{"id": str(i), "row": i, "source": source, "target": target} for i, (source, target) in texts]


def noted(rows: Sequence[dict[str, Any]], source: str = "en", target: str = "de") -> Audit:
    audit = Audit()
    swapped.note_swapped(rows, audit, (source, target), (source, "the target"))
    return audit


def count(audit: Audit, reason: str) -> tuple[int, list[int]]:
    """How many rows, and the first ones, of the only reason there is."""
    assert audit.problems.keys() == {reason}
    return audit.problems[reason]["count"], audit.problems[reason]["rows"]


RIGHT, WRONG = made(ENGLISH * 9, GERMAN * 9), made(GERMAN * 9, ENGLISH * 9)


@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("en_XX", "de_DE"), ("eng_Latn", "deu_Latn")])
def test_swapped_columns_of_one_script(source: str, target: str) -> None:
    audit = noted(WRONG, source, target)
    assert audit.notes == [
        f"warning: the columns seem to be swapped: the text of source_lang {source} reads like de, target_lang "
        f"{target} like en; to translate from {source}, --source_key 'the target' --target_key {source}"
    ]
    assert not audit.problems  # all rows are the same way round


@pytest.mark.parametrize(
    ("rows", "source", "target"),
    [
        (RIGHT, "en", "de"),
        (WRONG, "de", "en"),
        (WRONG, "tav", "en"),  # nothing is known of the one
        (made(GERMAN, ENGLISH), "en", "de"),  # too few to tell
        (RIGHT + WRONG, "en", "en"),
        (made(["Oslo", "7 km", "Tom Hanks"] * 99, ["Oslo", "7 km", "Tom Hanks"] * 99), "en", "de"),
        ([], "en", "de"),
    ],
)
def test_columns_of_which_nothing_is_said(rows: list[dict[str, Any]], source: str, target: str) -> None:
    assert noted(rows, source, target).notes == []


def test_a_column_in_another_language() -> None:
    said = "warning: the text of source_lang en reads like fr"
    assert noted(made(FRENCH * 9, GERMAN * 9)).notes == [said]
    assert noted(made(FRENCH * 9, [None] * 36)).notes == [said]  # for prediction
    assert noted(made(FRENCH * 9, ["汽车"] * 36), "en", "zh").notes == [said]
    both = noted(made(FRENCH * 9, ENGLISH * 9))
    assert both.notes == [said, "warning: the text of target_lang de reads like en"]
    assert not both.problems


def test_rows_that_are_swapped_against_the_others() -> None:
    rows = [*RIGHT, *made(GERMAN[:2], ENGLISH[:2])]
    assert count(noted(rows), "source and target seem to be swapped: de to en") == (2, [1, 2])
    audit = noted([*WRONG, *made(ENGLISH[:1], GERMAN[:1])])
    assert len(audit.notes) == 1  # of the columns
    assert count(audit, "source and target seem to be swapped: en to de") == (1, [1])
    rows = made([*FRENCH * 9, GERMAN[0]], [*GERMAN * 9, FRENCH[3]])  # said to be en
    assert count(noted(rows), "source and target seem to be swapped: de to fr") == (1, [37])


def test_scripts_tell_before_languages() -> None:
    """One note, and rows by letters, which need no words."""
    audit = noted(made([*RUSSIAN * 9, "Oslo"], [*ENGLISH * 9, "Осло"]), "en", "ru")
    assert len(audit.notes) == 1 and "en is in CYRILLIC, target_lang ru in LATIN letters; to tr" in audit.notes[0]
    assert count(audit, "source and target seem to be swapped: LATIN to CYRILLIC") == (1, [37])
    assert noted(made(RUSSIAN * 9, ENGLISH * 9), "uk", "en").notes == [
        "warning: the text of source_lang uk reads like ru"
    ]


class Stored(Sequence[dict[str, Any]]):
    """Rows that may be read one after the other only, and how often they were."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.passes = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.passes += 1
        return iter(self.rows)

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a row was asked for by its number")


def test_rows_of_a_large_file_are_read_in_order_and_words_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part at the beginning that is the other way round doesn't speak for the file."""
    monkeypatch.setattr(swapped, "SAMPLE", 48)
    rows = Stored(WRONG * 2 + RIGHT * 10)
    audit = noted(rows)
    assert audit.notes == [] and rows.passes == 2
    looked: list[str] = []
    monkeypatch.setattr(swapped, "common_words", lambda text: looked.append(text) or [])
    noted(rows)
    assert len(looked) == 2 * 48


@pytest.mark.parametrize(
    ("rows", "source", "target"),
    [(RIGHT, "en", "tav"), (made(ENGLISH, ENGLISH), "en", "en"), (made(ENGLISH, RUSSIAN), "en", "ru")],
)
def test_one_pass_is_enough_where_no_row_can_be_swapped(rows: list[dict[str, Any]], source: str, target: str) -> None:
    stored = Stored(rows)
    noted(stored, source, target)
    assert stored.passes == 1
