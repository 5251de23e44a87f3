"""Every kind of messy words and tags through the command line of preprocess.

The table in docs/data.md is written from these cases: `python -m tests.tasks.token_classification.test_bad_input`.
"""

import csv
import io
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
from finetune.data.values import CUT_SHORT
from finetune.tasks.token_classification.rows import places_of
from finetune.tasks.token_classification.schemes import entities
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


def for_o(sign: str) -> list[Words]:
    return [(tokens, [sign if tag == "O" else tag for tag in tags]) for tokens, tags in GOOD]


def conll(words: list[Words], separator: str = " ", *between: str) -> bytes:
    blocks = []
    for tokens, tags in words:
        blocks.append("".join(separator.join([w, *between, t]) + "\n" for w, t in zip(tokens, tags, strict=True)))
    return "\n".join(blocks).encode()


def marked(words: list[Words]) -> bytes:
    """CoNLL with markers of documents before, in, behind and between sentences."""
    first, second, third, last = conll(words).decode().removesuffix("\n\n").split("\n\n")
    word, _, others = second.partition("\n")
    glued = f"{word}\n-docstart- -x-\n{others}"
    return "\n\n".join(
        [f"-DOCSTART- O\n{first}", glued, "-DOCSTART-", f"{third}\n-DOCSTART- -X- O O", last, ""]
    ).encode()


def commented(words: list[Words]) -> bytes:
    return b"\n".join(b"# doc%d\n" % i + conll([sentence]) for i, sentence in enumerate(words))


def nested(words: list[Words]) -> bytes:
    """CoNLL as GermEval has it: the number of the word, the word, its outer and its inner tag."""
    lines = [
        "".join(
            f"{i}\t{word}\t{tag}\t{'B-LOC' if word == 'Babbage' else 'O'}\n" for i, (word, tag) in enumerate(pairs, 1)
        )
        for pairs in (list(zip(*sentence, strict=True)) for sentence in words)
    ]
    return "\n".join(lines).encode()


def mixed_ends(words: list[Words]) -> bytes:
    first, second, third, last = (conll([sentence]).decode() + "\n" for sentence in words)
    ends = first.replace("\n", "\r"), second, third.replace("\n", "\r\n"), last.replace("\n", "\x85")
    return "".join(ends).encode()


def conllu(words: list[Words]) -> bytes:
    blocks = []
    for tokens, tags in words:
        body = [f"{i}\t{w}\t{w}\t{t}\t_\t_\t0\t_\t_\t_\n" for i, (w, t) in enumerate(zip(tokens, tags, strict=True), 1)]
        blocks.append("# sent_id = 1\n" + f"1-2\t{tokens[0]}{tokens[1]}" + "\t_" * 8 + "\n" + "".join(body))
    return "\n".join(blocks).encode()


def annotated(words: list[Words]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Texts, and the spans of their entities as Label Studio writes them."""
    made = []
    for tokens, tags in words:
        text, placed = " ".join(tokens), places_of({"text": None, "tokens": tokens})
        found = [(placed[e.first][0], placed[e.last][1], e.type) for e in entities(tags, "IOB2")]
        made.append((text, [{"start": s, "end": e, "text": text[s:e], "labels": [kind]} for s, e, kind in found]))
    return made


def triples(found: list[dict[str, Any]]) -> list[list[Any]]:
    return [[span["start"], span["end"], span["labels"][0]] for span in found]


def doccano(words: list[Words], *more: tuple[str, list[list[Any]]]) -> bytes:
    texts = [(text, triples(found)) for text, found in annotated(words)]
    return lines(*({"text": text, "label": found} for text, found in [*texts[:2], *more, *texts[2:]]))


def prodigy(words: list[Words]) -> bytes:
    made = []
    for (text, found), (tokens, _) in zip(annotated(words), words, strict=True):
        own = [{"text": token, "id": i} for i, token in enumerate(tokens)]
        objects = [{"start": s, "end": e, "label": kind} for s, e, kind in triples(found)]
        made.append({"text": text, "tokens": own, "spans": objects, "answer": "accept"})
    return lines(*made[:2], {**made[0], "answer": "reject"}, *made[2:])


def label_studio(words: list[Words]) -> bytes:
    tasks = []
    for text, found in annotated(words):
        result = [{"type": "labels", "value": value} for value in found]
        cancelled = {"result": [], "was_cancelled": True}
        tasks.append({"data": {"text": text}, "annotations": [cancelled, {"result": result, "was_cancelled": False}]})
    return json.dumps([*tasks[:2], {"data": {"text": "Who knows?"}, "annotations": []}, *tasks[2:]]).encode()


def as_csv(*rows: list[Any]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    return file.getvalue().encode()


def word_rows(words: list[Words]) -> bytes:
    header = ["sentence_id", "words", "labels"]
    return as_csv(header, *([i, *pair] for i, (t, n) in enumerate(words) for pair in zip(t, n, strict=True)))


def dataturks(words: list[Words]) -> bytes:
    def label(span: dict[str, Any]) -> dict[str, Any]:
        point = {"start": span["start"], "end": span["end"] - 1, "text": span["text"]}
        return {"label": span["labels"], "points": [point]}

    return lines(*({"content": text, "annotation": [label(s) for s in found]} for text, found in annotated(words)))


def spacy_2(words: list[Words]) -> bytes:
    tokens = [[{"orth": w, "ner": t} for w, t in zip(*pair, strict=True)] for pair in words]
    return json.dumps([{"paragraphs": [{"raw": "", "sentences": [{"tokens": part} for part in tokens]}]}]).encode()


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
HALF: list[Words] = [(["Bo", "met", "Al-Eve"], ["B-PER", "O", "-"]), (["Rome"] * 2, ["-", "B-LOC"])]
BMES: list[Words] = [
    (["张", "三", "丰", "在", "京"], ["B-NAME", "M-NAME", "E-NAME", "O", "S-LOC"]),
    (["李", "四", "来"], ["B-NAME", "E-NAME", "O"]),
]
BMEWO: list[Words] = [(tokens, [tag.replace("S-", "W-") for tag in tags]) for tokens, tags in BMES]
LETTERS: list[Words] = [(["she", "is", "at", "home"], ["N", "S", "B", "E"]), (["I", "go"], ["I", "V"])]
SEGMENTS: list[Words] = [(list("北京大学生"), list("BMMES")), (list("我来"), list("SS")), (list("学校"), list("BE"))]
LEFT_OUT = "- and _ are read as not annotated; such words are left out of loss and metrics"
FOUND = "scheme: IOB2, found in the tags"
UPOS = ("--tag_key", "upos")
ONLY_O: list[Words] = [(tokens, ["O"] * len(tags)) for tokens, tags in GOOD]
NONE = "scheme: none, the tags mark no entities; scored by accuracy and macro F1"
SPLIT = "are text, not a list; split at white space"

REJECTED = "its answer is reject, not accept"


def with_span(name: str, span: list[Any], reason: str, tags: list[str] | None = None) -> Case:
    """Good rows of texts, and as row 3 one with this span, or these; it is dropped without `tags`."""
    tokens, spans = ["I", "saw", "Oslo", "."], span if isinstance(span[0], list) else [span]
    content = doccano(GOOD, ("I saw Oslo .", spans))
    kept, action = ([*GOOD[:2], (tokens, tags), *GOOD[2:]], "taken") if tags else (GOOD, "dropped")
    return Case(name, content, f"{action}, counted as “{reason}”", kept=kept, problems={reason: [3]})


COMMENTS = "train: 4 lines such as '# doc0' are read as comments: no other line has their tags"
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
    repaired("tags as NumPy writes them, without quotes", ["a", "b"], "[O O]", (["a", "b"], ["O", "O"])),
    dropped("a list that NumPy cut short", "['a' 'b' ... 'y' 'z']", "['O' 'O' ... 'O' 'O']", CUT_SHORT),
    dropped("a Python list that was cut short", "['a', ..., 'z']", ["O", "O"], CUT_SHORT),
    dropped("... for a tag", ["a", "...", "b"], ["O", "...", "O"], CUT_SHORT),
    repaired("... for a word", ["a", "..."], ["O", "O"], (["a", "..."], ["O", "O"])),
    Case("- or _ for a tag, as spaCy and CoNLL-U write them", lines(*rows(*GOOD, *HALF)),
         f"the words are not annotated: left out of loss and metrics, counted as “{LEFT_OUT}”",
         kept=[*GOOD, *((tokens, [None if tag == "-" else tag for tag in tags]) for tokens, tags in HALF)],
         problems={LEFT_OUT: [5, 6]}, said=("classes: 4 (B-LOC, B-PER, I-PER, O)", FOUND)),
    Case("rows in which no word is annotated", lines(*rows(*GOOD, (["a", "b"], ["-", "_"]))),
         "dropped, counted as “no tags”", problems={"no tags": [5]}),
    Case("one tag of a slip", lines(*rows(*GOOD * 3, (["Rome"], ["B_LOC"]))),
         "no class: its words are left out of loss and metrics; a warning with the rows and the likely tag",
         kept=[*GOOD * 3, (["Rome"], ["B_LOC"])],
         said=("classes: 4 (B-LOC, B-PER, I-PER, O)", FOUND,
               "warning: B_LOC means nothing in IOB2; did you mean B-LOC? left out of loss and metrics: 3 words, in "
               "train row 13, validation row 13, test row 13")),
    Case("many tags that mean nothing", lines(*rows(*GOOD, (["a", "b"], ["O", "PAD"]))),
         "classes like all others, scored as tags that mark no entities; a line names them",
         kept=[*GOOD, (["a", "b"], ["O", "PAD"])],
         said=("scheme: none, the tags mark no entities; PAD mark none; scored by accuracy and macro F1",)),
    Case("0 for O", lines(*rows(*for_o("0"))), "error that asks, with the rows and the command that writes O",
         parts=("is O meant by the tag '0'?", "sed -i")),
    Case("BMES", lines(*rows(*BMES)), "entities, as those of IOBES", kept=BMES,
         said=("classes: 5 (B-NAME, E-NAME, M-NAME, O, S-LOC)", "scheme: BMES, found in the tags")),
    Case("BMEWO", lines(*rows(*BMEWO)), "entities, as those of IOBES", kept=BMEWO,
         said=("scheme: BMEWO, found in the tags",)),
    Case("parts of speech of one letter", lines(*rows(*LETTERS)), "classes; no scheme, though some are IOBES' letters",
         kept=LETTERS, said=("classes: 6 (B, E, I, N, S, V)", NONE)),
    Case("BMES of word segmentation, without types", lines(*rows(*SEGMENTS)), "words, as entities without a type",
         kept=SEGMENTS, said=("classes: 4 (B, E, M, S)", "scheme: BMES, found in the tags")),
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
    Case("CoNLL, -DOCSTART- glued to sentences, in any form", marked(GOOD), "the same rows", "rows.conll",
         said=("train: 4 lines of document markers (-DOCSTART-) are left out",)),
    Case("CoNLL, comments of as many words as there are columns", commented(GOOD),
         "the same rows, and a line that says so", "rows.conll", said=(COMMENTS,)),
    Case("CoNLL with tabs, words with spaces", conll([(["New York", "a b"], ["B-LOC", "O"]), *GOOD[1:]], "\t"),
         "the same rows", "rows.conll", kept=[(["New York", "a b"], ["B-LOC", "O"]), *GOOD[1:]]),
    Case("CoNLL with tabs, a line without any", conll(GOOD, "\t") + b"New York\n",
         "error with the line", "rows.conll", parts=("line 22: 'New York'", "it has 1 columns")),
    Case("CoNLL with numbers before words, nested tags behind", nested(GOOD),
         "words and outer tags; `tag_key` takes the inner ones", "rows.conll",
         said=("train: ner_tags is column 3 (B-LOC, B-PER, I-PER, O); --tag_key takes another: column_4",)),
    Case("CoNLL that ends lines in CR, LF, CRLF and NEL", mixed_ends(GOOD), "the same rows", "rows.conll"),
    Case("a word on each line in a .tsv file", conll(GOOD, "\t"), "error with the command that renames it",
         "rows.tsv", parts=("it has a word on each line", "rows.conll, and give that file")),
    Case("CoNLL-U", conllu(GOOD), "words without surface lines; `tag_key upos`", "rows.conllu",
         parameters=UPOS),
    Case("CoNLL with a line of three columns", conll(GOOD) + b"x O O\n", "error with the line", "rows.txt",
         parts=("wrong number of columns", "line 22", "3 columns")),
    Case("prose in a .txt file", b"Once upon a time.\nThere was.\n", "error with the line", "rows.txt",
         parts=("wrong number of columns", "line 2")),
    Case("doccano: texts with spans [start, end, type]", doccano(GOOD), "the same rows, in IOB2",
         said=("scheme: IOB2, found in the tags",)),
    Case("spaCy's TRAIN_DATA as JSON", json.dumps([[t, {"entities": triples(f)}] for t, f in annotated(GOOD)]).encode(),
         "the same rows", "rows.json"),
    Case("spaCy 2's training JSON", spacy_2(GOOD), "the same rows, numbered by sentence", "rows.json"),
    Case("Doc.to_json of spaCy",
         lines(*({"text": t, "ents": [{"start": s, "end": e, "label": n} for s, e, n in triples(f)]}
                 for t, f in annotated(GOOD))), "the same rows"),
    Case("Prodigy, one example rejected", prodigy(GOOD), f"dropped, counted as “{REJECTED}”", problems={REJECTED: [3]}),
    Case("Label Studio, one task without annotations", label_studio(GOOD),
         "the first annotation that isn't cancelled; without one dropped, counted as “no tags”", "rows.json",
         problems={"no tags": [3]}),
    Case("Label Studio, JSON_MIN", json.dumps([{"text": t, "label": f} for t, f in annotated(GOOD)]).encode(),
         "the same rows", "rows.json"),
    Case("Label Studio, CSV", as_csv(["text", "label"], *([t, json.dumps(f)] for t, f in annotated(GOOD))),
         "the same rows", "rows.csv"),
    Case("Dataturks", dataturks(GOOD), "the same rows; its ends count the last character in"),
    Case("ends of all spans that count the last character in",
         lines(*({"text": t, "label": [[s, e - 1, n] for s, e, n in triples(f)]} for t, f in annotated(GOOD))),
         "the same rows, and a line that says why"),
    with_span("a span that lies outside its text", [10, 14, "LOC"], "a span lies outside its text"),
    with_span("a span that ends before it begins", [6, 2, "LOC"], "a span ends where it begins, or before"),
    with_span("a span without a label", [6, 10, None], "a span has no label"),
    with_span("white space at the edges of a span", [5, 10, "LOC"], "white space at the edges of a span",
              ["O", "O", "B-LOC", "O"]),
    with_span("two spans that overlap", [[6, 10, "LOC"], [2, 10, "CITY"]],
              "a span of LOC overlaps a longer or an earlier one, which is kept", ["O", "B-CITY", "I-CITY", "O"]),
    Case("spans in two columns", lines(*({"text": t, "label": f, "ents": f} for t, f in annotated(GOOD))),
         "error with the value that chooses", parts=("two columns: label, ents", "--spans_key label")),
    Case("one word in each row, with a sentence id", word_rows(GOOD), "rows of sentences", "rows.csv"),
    Case("the same, a sentence in two places", word_rows(GOOD) + b"0,Go,O\n", "error with both lines", "rows.csv",
         parts=("a sentence goes on after another one", "rows 2 and 20", "sort the rows by 'sentence_id'")),
    Case("another column of tokens", lines(*({"words": t, "ner_tags": n} for t, n in GOOD)),
         "error with the columns that are there", parts=("no column 'tokens'", "--token_key with one of: words, ner")),
]  # fmt: skip
OTHERS = [
    ("tags that train lacks", "kept as classes, with a warning that names split and tags", 0),
    ("_ for O, as WebAnno writes it", "error that asks, with the rows and the command that writes O", 3),
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
        assert str(file) in shown.err or "train row 1" in shown.err
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


def test_another_sign_for_o(selected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_jsonl(tmp_path / "signs.jsonl", rows(*for_o("_")))
    assert preprocessed(selected, tmp_path, train=file, validation=file, test=file) == 3
    assert "is O meant by - or _? no word has the tag O\n  where: train row 1, train row 2" in capsys.readouterr().err


def test_tags_that_break_their_scheme(selected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = write_jsonl(tmp_path / "mixed.jsonl", rows(*GOOD, (["a", "b"], ["O", "I-LOC"])))
    assert preprocessed(selected, tmp_path, train=mixed) == 0
    assert "scheme: IOB2, found in the tags; 1 distinct rows don't follow it to the letter" in capsys.readouterr().out


def test_the_page_lists_every_case() -> None:
    """If this fails: python -m tests.tasks.token_classification.test_bad_input."""
    assert around("token_classification")[1] == table(ENTRIES)


if __name__ == "__main__":
    write("token_classification", ENTRIES)
