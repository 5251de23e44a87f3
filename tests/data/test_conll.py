"""Words survive whatever stands around them in a file of columns: markers, comments, line ends, numbers, headers."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.core.errors import DataError
from finetune.data.readers import read_table
from finetune.data.table import Table

Sentence = list[tuple[str, str]]

LETTERS = st.characters(codec="utf-8", exclude_categories=("Z", "C"), exclude_characters="#\x85")
WORDS = st.text(LETTERS, min_size=1, max_size=6).filter(lambda word: not word.lower().startswith("-doc"))
TAGS = st.sampled_from(["O", "O", "B-PER", "I-PER", "B-LOC"])
# A word that ends a sentence before a marker would make it the marker of a new document.
SENTENCES = st.lists(
    st.lists(st.tuples(WORDS.filter(str.isalnum), TAGS), min_size=1, max_size=5), min_size=2, max_size=6
)
MARKERS = ["-DOCSTART-", "-DOCSTART- -X- O", "-docstart-\t-x-\to", "-DOCSTART- -X- -X- O", "-DOCSTART-\tO"]


def lines_of(sentences: list[Sentence], between: str) -> list[str]:
    return [line for sentence in sentences for line in [*(f"{word}{between}{tag}" for word, tag in sentence), ""]]


def read(folder: Path, text: str, name: str = "a.conll") -> Table:
    (folder / name).write_bytes(text.encode())
    return read_table(folder / name)


def found(table: Table) -> list[Sentence]:
    return [list(zip(row["tokens"], row["ner_tags"], strict=True)) for row in table.rows]


@settings(max_examples=150, deadline=None)
@given(SENTENCES, st.sampled_from(["\t", " "]), st.randoms(use_true_random=False))
def test_sentences_stay_whatever_stands_between_their_lines(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[Sentence], between: str, chance: random.Random
) -> None:
    """Markers stand anywhere, comments too; each line has an end of its own kind."""
    lines = lines_of(sentences, between)
    for more in [*MARKERS, "# id 7 of the file", "#"]:
        lines.insert(chance.randrange(len(lines)), more)
    text = "".join(line + chance.choice(["\n", "\r\n", "\x85"]) for line in lines)
    assert found(read(tmp_path_factory.getbasetemp(), text)) == sentences


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(WORDS, TAGS), min_size=1, max_size=4), min_size=1, max_size=5), st.sampled_from("\n\r")
)
def test_words_of_any_signs(tmp_path_factory: pytest.TempPathFactory, sentences: list[Sentence], end: str) -> None:
    """With tabs, words hold spaces too."""
    spaced = [[(f"{word} {word}", tag) for word, tag in sentence] for sentence in sentences]
    text = end.join(lines_of(spaced, "\t"))
    assert found(read(tmp_path_factory.getbasetemp(), text)) == spaced


A, B = [("Ada", "B-PER"), ("left", "O"), (".", "O")], [("Bob", "B-PER"), ("came", "O")]


@pytest.mark.parametrize(
    "text",
    [
        "-DOCSTART- O\nAda B-PER\nleft O\n. O\n\nBob B-PER\ncame O\n",
        "Ada B-PER\nleft O\n. O\n-DOCSTART- -X- O O\n\nBob B-PER\ncame O\n-DOCSTART-",
        "Ada B-PER\nleft O\n. O\n\n-DOCSTART-\n\nBob B-PER\ncame O\n",
        "Ada B-PER\nleft O\n. O\n-DOCSTART-\nBob B-PER\ncame O\n",
        "Ada B-PER\nleft O\n. O\n-DOCSTART-(2 Bob)\nBob B-PER\ncame O\n",
        "\nAda B-PER\n-docstart- -x-\nleft O\n. O\n\nBob B-PER\n-DOCEND- O\ncame O\n",
    ],
)
def test_document_markers(text: str, tmp_path: Path) -> None:
    table = read(tmp_path, text)
    assert found(table) == [A, B]
    assert "document markers" in table.notes[0]


def test_markers_alone_separate_where_there_are_no_blank_lines(tmp_path: Path) -> None:
    assert found(read(tmp_path, "Bob B-PER\ncame O\n-DOCSTART- O\nAda B-PER\nleft O\n. O\n")) == [B, A]


@pytest.mark.parametrize(
    ("text", "tokens", "note"),
    [
        ("# id x9\nAda B-PER\nleft O\n\n# id x8\n", ["Ada", "left"], ""),
        ("# doc1\nAda B-PER\nleft O\n\n# doc2\nBob B-PER\ncame O\n", ["Ada", "left", "Bob", "came"], "'# doc1'"),
        ("# B-X\nAda B-PER\n", ["#", "Ada"], ""),
        ("Ada N\n# SYM\n5 NUM\n\n# SYM\n", ["Ada", "#", "5", "#"], ""),
        ("#win\tB-TAG\nAda\tO\n# of a hashtag\n", ["#win", "Ada"], ""),
    ],
)
def test_words_and_comments_that_begin_with_a_hash(text: str, tokens: list[str], note: str, tmp_path: Path) -> None:
    table = read(tmp_path, text)
    assert [token for row in table.rows for token in row["tokens"]] == tokens
    assert note in "".join(table.notes)
    assert bool(note) == bool(table.notes)


@pytest.mark.parametrize(
    ("text", "columns", "taken", "note"),
    [
        ("1 Ada B-PER O\n2 left O O\n\n1 Oslo B-LOC B-PER\n", {"tokens", "ner_tags", "column_4"}, "B-PER", "numbers"),
        ("0\tAda\tB-PER\n1\tleft\tO\n2\tOslo\tB-LOC\n\n3\tBob\tO\n", {"tokens", "ner_tags"}, "B-PER", "numbers"),
        ("7 Ada B-PER\n7 left O\n\n8 Bob O\n", {"tokens", "ner_tags"}, "B-PER", "numbers"),
        ("Ada N B-NP B-PER\nleft V O O\n", {"tokens", "pos_tags", "chunk_tags", "ner_tags"}, "B-PER", "column 4"),
        ("Ada B-PER 0.9\nleft O 0.5\n", {"tokens", "ner_tags", "column_3"}, "B-PER", "column 2"),
        ("B-PER\tAda\nO\tleft\n", {"tokens", "ner_tags"}, "B-PER", "tags stand before the words"),
        ("Ada PROPN _\nleft VERB _\n", {"tokens", "ner_tags", "column_3"}, "PROPN", "column 2"),
        ("Ada\tB-PER\t\nleft\tO\t\n", {"tokens", "ner_tags"}, "B-PER", ""),
        ("Word Tag\nAda B-PER\nleft O\n", {"tokens", "ner_tags"}, "B-PER", "names the columns"),
    ],
)
def test_columns(text: str, columns: set[str], taken: str, note: str, tmp_path: Path) -> None:
    table = read(tmp_path, text)
    assert set(table.columns) == columns
    assert (table.rows[0]["tokens"][0], table.rows[0]["ner_tags"][0]) == ("Ada", taken)
    assert note in "; ".join(table.notes)


def test_numbers_that_are_words_stay(tmp_path: Path) -> None:
    assert read(tmp_path, "1 B-N\n2 I-N\n\n1 O\n").rows[0]["tokens"] == ["1", "2"]
    assert read(tmp_path, "1 N B-N\n7 N I-N\n\n1 V O\n").rows[0]["tokens"] == ["1", "7"]


def test_universal_dependencies_by_their_columns(tmp_path: Path) -> None:
    rest = "\t_" * 6
    table = read(tmp_path, f"# text = Ada left\n1\tAda\tAda\tPROPN{rest}\n2\tleft\tleave\tVERB{rest}\n", "a.txt")
    assert (table.rows[0]["tokens"], table.rows[0]["upos"]) == (["Ada", "left"], ["PROPN", "VERB"])


def test_all_lines_of_another_width_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "Ada\tB-PER\nNew York\nleft\tO\tO\nBob\tO\nOslo")
    said = str(caught.value)
    assert [part for part in ("line 2: 'New York'", "line 3", "line 5", "it has 1 columns") if part not in said] == []
    assert said.count("cut off") == 1
