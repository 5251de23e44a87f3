"""Every kind of messy words and tags through the command line of preprocess.

The table in docs/data.md is written from these cases: `python -m tests.tasks.token_classification.test_bad_input`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from finetune import preprocess
from finetune.core.process import run_main
from finetune.data.folders import Preprocessed, SelectedModel, read_rows
from tests.conftest import write_jsonl
from tests.test_bad_input import around, table, write

Words = tuple[list[str], list[str]]
GOOD: list[Words] = [
    (["Ada", "Lovelace", "met", "Babbage", "."], ["B-PER", "I-PER", "O", "B-PER", "O"]),
    (["The", "ship", "left", "Oslo", "."], ["O", "O", "O", "B-LOC", "O"]),
    (["Grass", "grows", "."], ["O", "O", "O"]),
    (["She", "wrote", "to", "Oslo", "."], ["O", "O", "O", "B-LOC", "O"]),
]


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()  # in ASCII, so that half a surrogate pair passes


def rows(*words: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"tokens": tokens, "ner_tags": tags} for tokens, tags in words]


@dataclass(frozen=True)
class Case:
    """A training file and what becomes of it: the rows kept, by default the good ones; problems; or an error."""

    name: str
    content: bytes
    says: str
    file: str = "rows.jsonl"
    kept: list[Words] = field(default_factory=lambda: GOOD)
    problems: dict[str, list[int]] = field(default_factory=dict)  # reason -> row numbers
    said: tuple[str, ...] = ()  # lines of the log
    parts: tuple[str, ...] = ()  # of the error; not empty means exit code 3
    parameters: tuple[str, ...] = ()


def dropped(name: str, tokens: Any, tags: Any, reason: str) -> Case:
    """Two good rows, the wrong one as row 3, the other good rows."""
    content = lines(*rows(*GOOD[:2], (tokens, tags), *GOOD[2:]))
    return Case(name, content, f"dropped, counted as “{reason}”", problems={reason: [3]})


def repaired(name: str, tokens: Any, tags: Any, mended: Words, *reasons: str) -> Case:
    content = lines(*rows(*GOOD[:2], (tokens, tags), *GOOD[2:]))
    says = " and ".join(f"“{reason}”" for reason in reasons)
    return Case(
        name, content, f"repaired, counted as {says}" if says else "the same rows",
        kept=[*GOOD[:2], mended, *GOOD[2:]], problems={reason: [3] for reason in reasons},
    )  # fmt: skip


def conll(words: list[Words], separator: str = " ", *between: str) -> bytes:
    blocks = []
    for tokens, tags in words:
        blocks.append("".join(separator.join([w, *between, t]) + "\n" for w, t in zip(tokens, tags, strict=True)))
    return "\n".join(blocks).encode()


def conllu(words: list[Words]) -> bytes:
    blocks = []
    for tokens, tags in words:
        body = [f"{i}\t{w}\t{w}\t{t}\t_\t_\t0\t_\t_\t_\n" for i, (w, t) in enumerate(zip(tokens, tags, strict=True), 1)]
        blocks.append("# sent_id = 1\n" + f"1-2\t{tokens[0]}{tokens[1]}" + "\t_" * 8 + "\n" + "".join(body))
    return "\n".join(blocks).encode()


def with_class_names() -> bytes:
    """As datasets writes Parquet: numbers, and their names in the file's metadata."""
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    kinds = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    columns = {"tokens": [t for t, _ in GOOD], "ner_tags": [[names.index(t) for t in tags] for _, tags in GOOD]}
    made = Dataset.from_dict(columns, features=kinds).with_format("arrow")[:]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(made.replace_schema_metadata(kinds.arrow_schema.metadata), sink)
    return bytes(sink.getvalue().to_pybytes())


LONG = (["word", "Oslo"] * 600, ["O", "B-LOC"] * 600)
NUMBERS: list[Words] = [(tokens, [str(i % 3) for i in range(len(tags))]) for tokens, tags in GOOD]
UPOS = ("--tag_key", "upos")
ONLY_O: list[Words] = [(tokens, ["O"] * len(tags)) for tokens, tags in GOOD]
NONE = "scheme: none, the tags mark no entities; scored by accuracy and macro F1"
SPLIT = "are text, not a list; split at white space"

CASES = [
    dropped("fewer tags than tokens", ["a", "b"], ["O"], "another number of tags than of tokens"),
    dropped("more tags than tokens", ["a"], ["O", "O"], "another number of tags than of tokens"),
    dropped("null tokens", None, ["O"], "no tokens"),
    dropped("an empty list of tokens", [], [], "no tokens"),
    dropped("null tags", ["a"], None, "no tags"),
    dropped("a null tag", ["a", "b"], ["O", None], "a tag is missing"),
    dropped("an empty tag", ["a", "b"], ["O", ""], "a tag is missing"),
    dropped("a list for a token", [["a"], "b"], ["O", "O"], "a token is a list or an object"),
    dropped("a number for the tokens", 5, ["O"], "the tokens are not a list"),
    dropped("a list as text, cut off", '["a", "b', ["O", "O"], "the tokens are neither JSON nor a Python literal"),
    repaired("an empty token", ["a", ""], ["O", "O"], (["a", ""], ["O", "O"])),
    repaired("tokens no tokenizer sees", ["\u200b", "\ufe0f"], ["O", "O"], (["\u200b", "\ufe0f"], ["O", "O"])),
    repaired("a null token", ["a", None], ["O", "O"], (["a", ""], ["O", "O"]), "a token is null; empty instead"),
    repaired(
        "a number among tokens", ["in", 1843], ["O", "O"], (["in", "1843"], ["O", "O"]),
        "a token is not a string; its text instead",
    ),
    repaired(
        "half a surrogate pair", ["a", "\ud83d"], ["O", "O"], (["a", "\ufffd"], ["O", "O"]),
        "half a surrogate pair is not a character; U+FFFD instead",
    ),
    repaired("white space around a tag", ["a"], [" O\n"], (["a"], ["O"]), "white space around a tag"),
    repaired(
        "text instead of lists", "Ada met Babbage .", "B-PER O B-PER O",
        (["Ada", "met", "Babbage", "."], ["B-PER", "O", "B-PER", "O"]), f"the tokens {SPLIT}", f"the tags {SPLIT}",
    ),
    repaired("lists as JSON text", '["a", "b"]', '["O", "O"]', (["a", "b"], ["O", "O"])),
    repaired("lists as Python text", "['a', 'b']", "['O', 'O']", (["a", "b"], ["O", "O"])),
    repaired("lists as pandas writes them", "array(['a', 'b'], dtype=object)", "['O' 'O']", (["a", "b"], ["O", "O"])),
    repaired("one row of 1,200 words", *LONG, LONG),
    Case("integer tags", lines(*rows(*((t, [int(n) for n in tags]) for t, tags in NUMBERS))),
         "classes by those numbers, in their order", kept=NUMBERS, said=("classes: 3 (0, 1, 2)", NONE)),
    Case("integer tags with names, Parquet", with_class_names(), "the names", "rows.parquet",
         said=("scheme: IOB2, found in the tags",)),
    Case("no entities at all", lines(*rows(*ONLY_O)), "one class, and a line that says so", kept=ONLY_O,
         said=("classes: 1 (O)", NONE)),
    Case("CoNLL, two columns with spaces", conll(GOOD), "the same rows", "rows.txt"),
    Case("CoNLL, two columns with tabs", conll(GOOD, "\t"), "the same rows", "rows.bio"),
    Case("CoNLL-2003, four columns and -DOCSTART-", b"-DOCSTART- -X- -X- O\n\n" + conll(GOOD, " ", "NN", "B-NP"),
         "the same rows", "rows.conll"),
    Case("CoNLL-U", conllu(GOOD), "words without surface lines; `tag_key upos`", "rows.conllu",
         parameters=UPOS),
    Case("CoNLL with a line of three columns", conll(GOOD) + b"x O O\n", "error with the line", "rows.txt",
         parts=("wrong number of columns", "line 22", "3 columns")),
    Case("prose in a .txt file", b"Once upon a time.\nThere was.\n", "error with the line", "rows.txt",
         parts=("wrong number of columns", "line 2")),
    Case("another column of tokens", lines(*({"words": t, "ner_tags": n} for t, n in GOOD)),
         "error with the columns that are there", parts=("no column 'tokens'", "--token_key with one of: words, ner")),
]  # fmt: skip
OTHERS = [
    ("tags that train lacks", "kept as classes, with a warning that names split and tags", 0),
    ("tags that break their scheme", "the scheme that most rows follow, and how many don't", 0),
]
ENTRIES = [(case.name, case.says, 3 if case.parts else 0) for case in CASES] + OTHERS


@pytest.fixture(scope="module")
def selected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of model import; preprocess reads no weights."""
    folder = tmp_path_factory.mktemp("selected")
    SelectedModel.model_folder(folder).symlink_to(tiny_model)
    SelectedModel("token_classification", "pytorch_model_path", "made", "bert", "Bert", ()).write(folder)
    return folder


def preprocessed(selected: Path, folder: Path, *words: str, **files: Path) -> int:
    """The exit code of preprocess; splits that aren't given are the good rows."""
    good = write_jsonl(folder / "good.jsonl", rows(*GOOD))
    words += ("--task", "token_classification", "--model_selector_output", str(selected))
    words += ("--output_dir", str(folder / "out"), "--max_dropped_fraction", "0.5")
    for split in ("train", "validation", "test"):
        words += (f"--{split}_file_path", str(files.get(split, files.get("train") if "--tag_key" in words else good)))
    try:
        run_main(preprocess.main, list(words))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, selected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / case.file
    file.write_bytes(case.content)
    # Where the classes are the point, the other splits must not add theirs.
    others = {"validation": file, "test": file} if case.said else {}
    assert preprocessed(selected, tmp_path, *case.parameters, train=file, **others) == (3 if case.parts else 0)
    shown = capsys.readouterr()
    if case.parts:
        assert "Traceback" not in shown.err
        assert str(file) in shown.err
        assert [part for part in case.parts if part not in shown.err] == []
        return
    assert [line for line in case.said if line not in shown.out.splitlines()] == []
    report = Preprocessed.read(tmp_path / "out", "token_classification").splits["train"]
    kept = read_rows(Preprocessed.rows_file(tmp_path / "out", "train"))
    unlearnable = {"none of its words gives a token": [3]} if case.name == "tokens no tokenizer sees" else {}
    expected = [words for words in case.kept if words[0] != ["\u200b", "\ufe0f"]]
    assert [(r["tokens"], r["tags"]) for r in kept] == expected
    assert {reason: found["rows"] for reason, found in report.problems.items()} == case.problems | unlearnable
    assert all(reason in shown.out for reason in case.problems)


def test_tags_that_train_lacks(selected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", rows(*GOOD, (["a", "b"], ["B-ORG", "I-LOC"])))
    assert preprocessed(selected, tmp_path, test=more) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "classes: 6 (B-LOC, B-ORG, B-PER, I-LOC, I-PER, O)" in shown
    assert "warning: test has tags that train lacks, kept as classes: B-ORG, I-LOC" in shown
    state = json.loads((tmp_path / "out" / "preprocess.json").read_text())["state"]
    assert state["labels"] == ["B-LOC", "B-ORG", "B-PER", "I-LOC", "I-PER", "O"]


def test_tags_that_break_their_scheme(selected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = write_jsonl(tmp_path / "mixed.jsonl", rows(*GOOD, (["a", "b"], ["O", "I-LOC"])))
    assert preprocessed(selected, tmp_path, train=mixed) == 0
    assert "scheme: IOB2, found in the tags; 1 distinct rows don't follow it to the letter" in capsys.readouterr().out


def test_a_stranger_among_the_tags_is_named(selected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = write_jsonl(tmp_path / "mixed.jsonl", rows(*GOOD, (["a", "b"], ["O", "PAD"])))
    assert preprocessed(selected, tmp_path, train=mixed) == 0
    assert "scheme: none, the tags mark no entities; PAD mark none" in capsys.readouterr().out


def test_the_page_lists_every_case() -> None:
    """If this fails: python -m tests.tasks.token_classification.test_bad_input."""
    assert around("token_classification")[1] == table(ENTRIES)


if __name__ == "__main__":
    write("token_classification", ENTRIES)
