"""Texts with spans become words and tags: each tool's file, what is wrong with spans, and any spans at all."""

import csv
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.core.errors import DataError
from finetune.data.readers import read_table
from finetune.data.table import Audit, Row
from finetune.data.values import Unusable
from finetune.params.datapreprocess import TokenClassificationColumns
from finetune.tasks.token_classification import annotations
from finetune.tasks.token_classification import rows as tc_rows
from finetune.tasks.token_classification.schemes import entities
from finetune.tasks.token_classification.spans import READINGS, tags_of
from tests.tasks.token_classification.conftest import validated

TEXT = "Ada Lovelace sailed to Oslo."
WORDS = ["Ada", "Lovelace", "sailed", "to", "Oslo", "."]
TAGS = ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]
SPANS = [[0, 12, "PER"], [23, 27, "LOC"]]
OBJECTS = [{"start": start, "end": end, "label": label} for start, end, label in SPANS]
REGIONS = [{"start": s, "end": e, "text": TEXT[s:e], "labels": [label]} for s, e, label in SPANS]
TOKENS = [
    {"text": word, "start": TEXT.index(word), "end": TEXT.index(word) + len(word), "id": i}
    for i, word in enumerate(WORDS)
]


def regions(*found: Row, kind: str = "labels") -> list[Row]:
    """The result of an annotation of Label Studio; a choice for the whole text, which is no span, is part of it."""
    choice = {"type": "choices", "value": {"choices": ["travel"]}, "from_name": "topic"}
    return [choice, *({"type": kind, "value": value, "from_name": "label", "to_name": "text"} for value in found)]


def task(*results: list[Row] | None, key: str = "text", name: str = "annotations") -> Row:
    """A task of Label Studio with an annotation for each result; None is a cancelled one."""
    return {
        "id": 3,
        "data": {key: TEXT, "source": "a.txt"},
        name: [{"result": result or [], "was_cancelled": result is None} for result in results],
        "predictions": [],
    }


def spacy_2(*sentences: tuple[list[str], list[str | None]]) -> Row:
    tokens = [
        [{"id": i, "orth": w, "tag": "X", "ner": t} for i, (w, t) in enumerate(zip(*s, strict=True))] for s in sentences
    ]
    return {"id": 0, "paragraphs": [{"raw": TEXT, "sentences": [{"tokens": t, "brackets": []} for t in tokens]}]}


FORMS: dict[str, Row] = {
    "doccano": {"id": 3, "text": TEXT, "label": SPANS, "Comments": []},
    "doccano, labels": {"id": 3, "text": TEXT, "labels": SPANS},
    "doccano, older": {"id": 3, "data": TEXT, "label": SPANS},
    "doccano, relations": {
        "id": 3,
        "text": TEXT,
        "entities": [{"id": 7, "label": n, "start_offset": s, "end_offset": e} for s, e, n in SPANS],
        "relations": [],
    },
    "Prodigy": {"id": 3, "text": TEXT, "spans": OBJECTS, "tokens": TOKENS, "answer": "accept", "_task_hash": 5},
    "Doc.to_json": {"id": 3, "text": TEXT, "ents": OBJECTS, "tokens": TOKENS, "sents": [{"start": 0, "end": 28}]},
    "Label Studio": task(regions(*REGIONS)),
    "Label Studio, older": task(regions(*REGIONS), name="completions"),
    "Label Studio, JSON_MIN": {"id": 3, "text": TEXT, "label": REGIONS, "topic": "travel", "annotator": 1},
    "Dataturks": {
        "id": 3,
        "content": TEXT,
        "annotation": [
            {"label": [n], "points": [{"start": s, "end": e - 1, "text": TEXT[s:e]}]} for s, e, n in SPANS
        ],
        "extras": None,
    },
    "JSON text": {"id": 3, "text": TEXT, "label": json.dumps(REGIONS)},
    "Python text": {"id": 3, "text": TEXT, "entities": str(SPANS)},
    "datasets": {"id": 3, "text": TEXT, "spans": {"start": [0, 23], "end": [12, 27], "label": ["PER", "LOC"]}},
    "an object of entities": {"id": 3, "text": TEXT, "annotations": {"entities": SPANS}},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_same_row(form: str) -> None:
    rows, audit = validated(FORMS[form])
    assert rows == [{"id": "3", "row": 11, "text": TEXT, "tokens": WORDS, "tags": TAGS}]
    assert audit.problems == {}
    assert len(audit.notes) == 1


@pytest.mark.parametrize("lines", [True, False], ids=["jsonl", "json"])
def test_pairs_of_a_text_and_its_entities(lines: bool, tmp_path: Path) -> None:
    pairs = [[TEXT, {"entities": SPANS}], ["Nobody went.", {"entities": []}]]
    file = tmp_path / ("train.jsonl" if lines else "train.json")
    file.write_text("\n".join(map(json.dumps, pairs)) if lines else json.dumps(pairs))
    rows = tc_rows.validate(read_table(file), TokenClassificationColumns(), Audit())
    assert [(r["row"], r["text"], r["tags"]) for r in rows] == [(1, TEXT, TAGS), (2, "Nobody went.", ["O", "O", "O"])]


def test_pairs_beside_a_list_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"classes": ["PER", "LOC"], "annotations": [[TEXT, {"entities": SPANS}]]}))
    (row,) = tc_rows.validate(read_table(file), TokenClassificationColumns(), Audit())
    assert row["tags"] == TAGS


def test_csv_with_spans_as_text(tmp_path: Path) -> None:
    made = io.StringIO(newline="")
    csv.writer(made).writerows([("id", "text", "label"), (1, TEXT, json.dumps(REGIONS)), (2, "Nobody went.", "")])
    (tmp_path / "train.csv").write_text(made.getvalue())
    rows = tc_rows.validate(read_table(tmp_path / "train.csv"), TokenClassificationColumns(), Audit())
    assert [r["tags"] for r in rows] == [TAGS, None]


def test_training_json_of_spacy_2() -> None:
    rows, audit = validated(
        spacy_2((["Ada", "Lovelace", "sailed"], ["B-PER", "L-PER", "O"]), (["To", "Oslo"], ["-", "U-LOC"])),
        spacy_2((["Who", "knows"], ["-", None])),
    )
    assert [(r["id"], r["row"], r["tokens"], r["tags"]) for r in rows] == [
        ("1", 1, ["Ada", "Lovelace", "sailed"], ["B-PER", "L-PER", "O"]),
        ("2", 2, ["To", "Oslo"], [None, "U-LOC"]),
        ("3", 3, ["Who", "knows"], None),
    ]
    assert audit.notes == ["3 sentences of spaCy's training JSON, numbered in their order"]
    parts, _ = validated(spacy_2((["Go"], ["O"])), tag_key="tag")
    assert parts[0]["tags"] == ["X"]


@pytest.mark.parametrize("document", [{"paragraphs": [{"qas": []}]}, {"paragraphs": [7]}, {"paragraphs": 7}])
def test_broken_training_json_of_spacy_2(document: Row) -> None:
    with pytest.raises(DataError, match="broken spaCy file") as raised:
        validated(spacy_2((["Go"], ["O"])), document)
    assert raised.value.faults[0].where == "file.csv, row 12"


@pytest.mark.parametrize(
    ("row", "tags"),
    [
        ({"label": None}, None),
        ({"label": "null"}, None),
        ({"label": float("nan")}, None),
        ({"label": []}, ["O"] * 6),
        ({"label": None, "answer": "accept"}, ["O"] * 6),
    ],
)
def test_no_entities_and_not_annotated_are_two_things(row: Row, tags: list[str] | None) -> None:
    rows, audit = validated({"text": TEXT, "label": SPANS}, {"text": TEXT, **row})
    assert [r["tags"] for r in rows] == [TAGS, tags]
    assert audit.problems == {}


def test_tasks_with_none_one_and_more_annotations() -> None:
    first, second = regions(*REGIONS), regions(REGIONS[1])
    rows, audit = validated(task(first), task(), task(None), task(regions()), task(None, second), task(second, first))
    only = ["O", "O", "O", "O", "B-LOC", "O"]
    assert [r["tags"] for r in rows] == [TAGS, None, None, ["O"] * 6, only, only]
    said = audit.problems["annotated more than once; the first annotation is taken"]
    assert (said["action"], said["rows"]) == ("kept", [16])


def test_regions_of_html_are_no_spans_of_a_text() -> None:
    rows, audit = validated(task(regions(*REGIONS)), task(regions(*REGIONS, kind="hypertextlabels")))
    assert [r["row"] for r in rows] == [11]
    assert list(audit.problems) == ["its hypertextlabels are not spans of characters"]


def problem(**row: Any) -> tuple[str, str]:
    """(action, reason) of the one thing wrong with a row between two good ones."""
    good = {"text": TEXT, "label": OBJECTS}
    rows, audit = validated(good, {**good, **row}, good)
    ((reason, found),) = audit.problems.items()
    assert len(rows) == (2 if found["action"] == "dropped" else 3)
    assert (found["count"], found["rows"]) == (1, [12])
    return found["action"], reason


OUTSIDE, SHAPE = "a span lies outside its text", annotations._SHAPE
CUT = "a span of LOC cuts through a word; its words count as not annotated"
OVERLAP = "overlaps a longer or an earlier one, which is kept"


@pytest.mark.parametrize(
    ("spans", "action", "reason"),
    [
        ([[23, 29, "LOC"]], "dropped", OUTSIDE),
        ([[-5, 27, "LOC"]], "dropped", OUTSIDE),
        ([[27, 23, "LOC"]], "dropped", "a span ends where it begins, or before"),
        ([[23, 23, "LOC"]], "dropped", "a span ends where it begins, or before"),
        ([[23, 27]], "dropped", SHAPE),
        ([23, 27, "LOC"], "dropped", SHAPE),
        ([{"start": 23, "label": "LOC"}], "dropped", SHAPE),
        ([["LOC", 23, 27]], "dropped", "an offset of a span is not a whole number"),
        ([[23.5, 27, "LOC"]], "dropped", "an offset of a span is not a whole number"),
        ([[True, 27, "LOC"]], "dropped", "an offset of a span is not a whole number"),
        ([[23, 10**40, "LOC"]], "dropped", "an offset of a span is not a whole number"),
        ([[23, 27, None]], "dropped", "a span has no label"),
        ([{"start": 23, "end": 27, "labels": []}], "dropped", "a span has no label"),
        ([[23, 27, " "]], "dropped", "a span has no label"),
        ("[[23, 27, 'LO", "dropped", "the spans are neither JSON nor a Python literal"),
        (7, "dropped", "the spans are not a list"),
        ([{**REGIONS[1], "text": "Rome"}], "dropped", "a span's own text is not what stands at its offsets"),
        ([[24, 27, "LOC"]], "kept", CUT),
        ([[0, 26, "LOC"]], "kept", CUT),
        ([*SPANS, [0, 3, "FIRST"]], "kept", f"a span of FIRST {OVERLAP}"),
        ([*SPANS, [0, 12, "SHIP"]], "kept", f"a span of SHIP {OVERLAP}"),
        ([[23, 27, ["LOC", "CITY"]]], "kept", "a span has several labels; the first is taken"),
        ([[22, 27, "LOC"]], "repaired", "white space at the edges of a span"),
        ([[22, 23, "LOC"]], "repaired", "a span of white space alone is left out"),
        ([[23, 27, "LO\ud83d"]], "repaired", "half a surrogate pair is not a character; U+FFFD instead"),
        ([{**REGIONS[1], "end": 26}], "repaired", "the offsets of a span counted characters, the last one included"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_messy_spans(spans: Any, action: str, reason: str) -> None:
    assert problem(label=spans) == (action, reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": None}, "no text"),
        ({"text": 7}, "no text"),
        ({"text": " \n", "label": []}, "no tokens"),
        ({"answer": "reject"}, "its answer is reject, not accept"),
        ({"answer": "ignore"}, "its answer is ignore, not accept"),
    ],
)
def test_rows_that_are_dropped(row: Row, reason: str) -> None:
    assert problem(**row) == ("dropped", reason)


def test_words_of_a_span_that_cuts_through_one_are_not_annotated() -> None:
    rows, audit = validated({"text": "Ada met Eva in New York-Oslo.", "label": [[8, 11, "PER"], [15, 23, "LOC"]]})
    assert rows[0]["tokens"] == ["Ada", "met", "Eva", "in", "New", "York-Oslo", "."]
    assert rows[0]["tags"] == ["O", "O", "B-PER", "O", None, None, "O"]
    assert audit.notes[1] == "words through which a span cuts, or of its span: New, York-Oslo"
    assert tc_rows.kinds(rows[0]) == {"O", "B-PER"}


def test_a_row_of_which_no_word_is_annotated() -> None:
    rows, _ = validated({"text": "Oslo-Bergen", "label": [[0, 4, "LOC"]]})
    assert rows[0]["tags"] is None


def test_the_longest_of_overlapping_spans_is_kept() -> None:
    spans = [[0, 3, "A"], [0, 12, "B"], [4, 19, "C"], [4, 19, "D"], [20, 22, "E"], [20, 22, "E"]]
    rows, audit = validated({"text": TEXT, "label": spans})
    assert rows[0]["tags"] == ["B-A", "B-C", "I-C", "B-E", "O", "O"]
    assert [reason.split()[3] for reason in audit.problems] == ["D", "B"]


def test_entities_side_by_side() -> None:
    rows, _ = validated({"text": "Ada Eva", "label": [[4, 7, "_"], [0, 3, "_"]]})
    assert rows[0]["tags"] == ["B", "B"]


SHIPS = "🚢🚢 Ada and 🚢 Eva sailed to Malmö."
NAMES = [("Ada", "PER"), ("Eva", "PER"), ("Malmö", "LOC")]
READ = ["O", "B-PER", "O", "O", "B-PER", "O", "O", "B-LOC", "O"]


def counted(text: str, names: list[tuple[str, str]], encoding: str, width: int) -> list[Row]:
    """Spans in units of an encoding, each with its text."""

    def count(part: str) -> int:
        return len(part.encode(encoding)) // width

    places = [(count(text[: text.index(name)]), name, label) for name, label in names]
    return [{"start": start, "end": start + count(name), "label": label, "text": name} for start, name, label in places]


@pytest.mark.parametrize(
    ("unit", "encoding", "width"),
    [("UTF-16 units", "utf-16-le", 2), ("bytes", "utf-8", 1), ("characters", "utf-32-le", 4)],
)
@pytest.mark.parametrize("own", [True, False], ids=["with their texts", "without"])
def test_offsets_in_other_units(unit: str, encoding: str, width: int, own: bool) -> None:
    spans = counted(SHIPS, NAMES, encoding, width)
    if not own:
        spans = [{key: span[key] for key in ("start", "end", "label")} for span in spans]
    rows, audit = validated({"text": SHIPS, "label": spans})
    assert rows[0]["tags"] == READ
    repair = f"the offsets of a span counted {unit}"
    assert list(audit.problems) == ([repair] if own and unit != "characters" else [])
    assert (f"offsets count {unit}" in audit.notes[0]) == (not own and unit != "characters")


@pytest.mark.parametrize(
    ("first", "last", "counted"),
    [
        (0, -1, "characters, the last one included"),
        (1, 1, "characters from 1"),
        (1, 0, "characters from 1, the last one included"),
    ],
)
def test_offsets_of_a_file_that_count_otherwise(first: int, last: int, counted: str) -> None:
    spans = [[start + first, end + last, label] for start, end, label in SPANS]
    rows, audit = validated(*[{"text": TEXT, "label": spans}] * 3)
    assert [r["tags"] for r in rows] == [TAGS] * 3
    assert audit.notes[0].endswith(f"; offsets count {counted}: so 6 of 6 spans begin and end with words, else 0")


def test_a_few_spans_do_not_change_what_offsets_count() -> None:
    rows, audit = validated(*[{"text": TEXT, "label": SPANS}] * 3, *[{"text": TEXT, "label": [[23, 26, "LOC"]]}] * 5)
    assert [r["tags"] for r in rows[:3]] == [TAGS] * 3
    assert audit.problems[CUT]["count"] == 5


def test_a_spans_own_text_may_be_written_otherwise() -> None:
    text = "In Malmo\u0308  and\nGo\u0308teborg"
    span = {"start": 3, "end": 24, "label": "LOC", "text": "Malm\u00f6 and\\nG\u00f6teborg"}
    rows, audit = validated({"text": text, "label": [span]})
    assert (rows[0]["tags"], audit.problems) == (["O", "B-LOC", "I-LOC", "I-LOC"], {})


@pytest.mark.parametrize(
    ("row", "columns", "tokens"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O", "O"], "text": TEXT, "label": SPANS}, {}, ["a", "b"]),
        ({"tokens": ["a", "b"], "text": TEXT, "label": SPANS}, {"spans_key": "label"}, WORDS),
        ({"words": ["a", "b"], "text": TEXT, "label": SPANS}, {"token_key": "words"}, ["a", "b"]),
        ({"text": TEXT, "label": "travel", "spans": SPANS}, {}, WORDS),
        ({"text": TEXT, "label": SPANS, "entities": OBJECTS}, {"spans_key": "entities"}, WORDS),
        ({"body": TEXT, "found": SPANS}, {"text_key": "body", "spans_key": "found"}, WORDS),
        ({"text": "x", "body": TEXT, "label": SPANS}, {"text_key": "body"}, WORDS),
        (task(regions(*REGIONS), key="body"), {"text_key": "body"}, WORDS),
        ({"text": TEXT, "label": []}, {}, WORDS),
        (task(regions()), {}, WORDS),
        (task(), {}, WORDS),
    ],
)
def test_which_columns_are_read(row: Row, columns: dict[str, str], tokens: list[str]) -> None:
    rows, audit = validated(row, **columns)
    assert rows[0]["tokens"] == tokens
    assert len(audit.notes) == (tokens == WORDS)


@pytest.mark.parametrize(
    ("row", "columns", "what", "fix"),
    [
        ({"text": TEXT, "label": SPANS, "ents": OBJECTS}, {}, "two columns: label, ents", "--spans_key label"),
        ({"body": TEXT, "label": SPANS}, {}, "no column 'text'", "--text_key with one of: body, label"),
        ({"text": TEXT, "label": SPANS}, {"text_key": "txt"}, "no column 'txt'; did you mean text", "--text_key"),
        ({"text": TEXT, "label": SPANS}, {"spans_key": "labels"}, "no column 'labels'; did you mean", "--spans_key"),
        (task(regions(*REGIONS), key="body"), {}, "no column 'text'", "--text_key with one of: body, source"),
        ({"text": TEXT, "label": "travel"}, {}, "no column 'tokens'", "--token_key with one of: text, label"),
        ({"text": TEXT, "labels": ["O", "O"]}, {}, "no column 'tokens'", "--token_key"),
        ({"text": TEXT, "label": SPANS}, {"token_key": "words"}, "no column 'words'", "--token_key"),
    ],
)
def test_columns_that_cannot_be_told(row: Row, columns: dict[str, str], what: str, fix: str) -> None:
    with pytest.raises(DataError) as raised:
        validated(row, **columns)
    (fault,) = raised.value.faults
    assert what in fault.what
    assert fix in fault.fix


def test_a_row_is_asked_for_by_its_text() -> None:
    (row,), _ = validated({"text": TEXT, "label": SPANS})
    (served,) = tc_rows.serve([tc_rows.request(row)])
    assert (served["tokens"], tc_rows.places_of(served)) == (row["tokens"], tc_rows.places_of(row))


ALPHABET = "aábB 9.,-'\"(漢字かי한🙂👩‍👧ﬁ\u0301\u200b\u3000\t\n\ud83d"
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=40)


@st.composite
def aligned(draw: st.DrawFn) -> tuple[str, list[tuple[int, int, str]]]:
    """A text, and spans over some of its words that don't overlap, in any order."""
    text = draw(TEXTS.filter(lambda text: bool(text.strip())))
    words = tc_rows.words_of(text)
    cuts = sorted(draw(st.sets(st.integers(0, len(words)), max_size=9)))
    labels = st.sampled_from(["PER", "LOC", "a-b", "_", "O"])
    spans = [
        (words[first][0], words[last - 1][1], draw(labels)) for first, last in pairwise(cuts) if draw(st.booleans())
    ]
    return text, draw(st.permutations(spans))


@given(aligned())
def test_spans_of_words_come_back(given_row: tuple[str, list[tuple[int, int, str]]]) -> None:
    text, spans = given_row
    (row,), audit = validated({"text": text, "label": spans})
    placed = tc_rows.places_of(row)
    found = [(placed[e.first][0], placed[e.last][1], e.type) for e in entities(row["tags"], "IOB2")]
    assert found == sorted(spans)
    assert {p["action"] for p in audit.problems.values()} <= {"repaired"}  # half a surrogate pair


OFFSETS = st.integers(-3, 44) | st.sampled_from(["7", 7.0, 7.5, None, True, 10**30, [1]])
ANY_SPAN = (
    st.tuples(OFFSETS, OFFSETS)
    | st.fixed_dictionaries({"start": OFFSETS, "end": OFFSETS}, optional={"text": TEXTS | st.none()})
    | st.sampled_from([None, 5, "x", [], {}, {"points": [7]}, {"result": 5}, {"value": {}}])
)


def labelled(span: Any, label: str) -> Any:
    if isinstance(span, tuple):
        return [*span, label]
    return {**span, "label": label} if isinstance(span, dict) else span


@given(TEXTS, st.lists(ANY_SPAN, max_size=5))
def test_every_span_is_accounted_for(text: str, spans: list[Any]) -> None:
    """Each is an entity, or the row is dropped, or a reason names its type; those of white space alone are left out."""
    spans = [labelled(span, f"T{i}.") for i, span in enumerate(spans)]
    rows, audit = validated({"text": text, "label": spans}, spans_key="label")
    assert len(rows) + audit.dropped == 1
    for row in rows:
        assert len(row["tokens"]) == len(tc_rows.words_of(row["text"]))
        known = ["O" if tag is None else tag for tag in row["tags"] or ()]
        named = {e.type for e in entities(known, "IOB2")} | {
            word for reason in audit.problems for word in reason.split()
        }
        lost = [i for i in range(len(spans)) if f"T{i}." not in named]
        assert not lost or "a span of white space alone is left out" in audit.problems


@given(TEXTS, st.lists(ANY_SPAN, max_size=4), st.sampled_from(["text", "data", "content"]))
def test_nothing_but_unusable_is_raised(text: str, spans: list[Any], column: str) -> None:
    for reading in READINGS:
        source = annotations.Source(column, "text", "spans", reading, "")
        repairs: list[str] = []
        try:
            read, found = annotations.read({column: text, "spans": spans}, source, repairs)
        except Unusable:
            continue
        assert found is not None
        assert all(read[s.start : s.end].strip() == read[s.start : s.end] != "" for s in found)
        words = tc_rows.words_of(read)
        assert len(tags_of(found, words, repairs)) == len(words)
