"""Every kind of bad input through the command line of preprocess: the same rows, an account of them, or one error.

The table in docs/data.md is written from these cases: `python -m tests.test_bad_input`.
"""

import csv
import errno
import gzip
import io
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from finetune import evaluation, preprocess
from finetune.core.errors import storage_error
from finetune.core.process import run_main
from finetune.data.folders import Preprocessed, read_rows
from finetune.data.values import CUT_SHORT
from tests.conftest import ROOT, write_jsonl

Row = dict[str, Any]
PAGE = ROOT / "docs" / "data.md"


def row(question: str, context: str, text: str, **more: Any) -> Row:
    answers = {"text": [text], "answer_start": [context.index(text)]}
    return {"id": question, "question": question, "context": context, "answers": answers, **more}


GOOD = [
    row("Who wrote it?", "Ada Lovelace wrote the note in 1843.", "Ada Lovelace"),
    row("When did it sail?", "The ship sailed north in May.", "May"),
    row("Where is it kept?", "The map is kept in a museum in Oslo.", "Oslo"),
    row("What grows there?", "Short grass grows on the dunes.", "Short grass"),
]
FIRST = GOOD[0]


def but(**changes: Any) -> Row:
    """The first good row, changed; None takes a column away."""
    return {key: value for key, value in {**FIRST, "id": "x", **changes}.items() if value is not None}


def answer(text: Any, start: Any) -> Row:
    return but(answers={"text": text, "answer_start": start})


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def delimited(rows: list[Row], delimiter: str, form: Any = json.dumps) -> bytes:
    """A delimited file whose answers are text."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows({**r, "answers": form(r["answers"])} for r in rows)
    return file.getvalue().encode()


def tsv(*contexts: str) -> bytes:
    """A TSV file whose fields are written as they are, without a thought for quotes."""
    wanted = [row(f"Who? {i}", context, "Ada") for i, context in enumerate(contexts)]
    body = [f"{r['id']}\t{r['question']}\t{r['context']}\t{json.dumps(r['answers'])}" for r in wanted]
    return "\n".join(["id\tquestion\tcontext\tanswers", *body]).encode()


def as_pandas_writes(answers: Row) -> str:
    return f"{{'text': array({answers['text']!r}, dtype=object), 'answer_start': array({answers['answer_start']!r})}}"


def first_answer(r: Row) -> Row:
    return {"text": r["answers"]["text"][0], "answer_start": r["answers"]["answer_start"][0]}


PARAGRAPHS = [
    {"context": r["context"], "qas": [{"id": r["id"], "question": r["question"], "answers": [first_answer(r)]}]}
    for r in GOOD
]


def nested(nulls: bool = False) -> bytes:
    plausible = [first_answer(GOOD[3])]
    impossible = {"id": "n", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": plausible}
    last = {**PARAGRAPHS[3], "qas": [*PARAGRAPHS[3]["qas"], impossible]}
    articles: list[Row] = [{"title": "All", "paragraphs": [*PARAGRAPHS[:3], last]}]
    if nulls:
        articles[0]["paragraphs"] += [{"context": "None asked.", "qas": None}, {"context": "None asked."}]
        articles += [{"title": "Empty", "paragraphs": []}, {"title": "Null", "paragraphs": None}]
    return json.dumps({"version": "v2.0", "data": articles}).encode()


def span(r: Row, label: str) -> Row:
    text, start = first_answer(r).values()
    return {"start": start, "end": start + len(text), "text": text, "labels": [label]}


def task(r: Row) -> Row:
    """A row as Label Studio exports it."""
    annotation = {"result": [{"value": span(r, "Answer"), "type": "labels"}], "was_cancelled": False}
    data = {"question": r["question"], "text": r["context"]}
    return {"id": r["id"], "data": data, "annotations": [annotation]}


def flat_task(r: Row, label: str = "Answer") -> Row:
    """A row of Label Studio's JSON_MIN."""
    return {"id": r["id"], "question": r["question"], "text": r["context"], "label": [span(r, label)], "annotator": 1}


def columns(text: str, start: str | None = None) -> bytes:
    """A CSV file whose answers are plain text, with their offsets in a column or nowhere."""
    rows = []
    for r in GOOD:
        values = dict(zip((text, start), first_answer(r).values(), strict=True))
        rows.append({k: r[k] for k in ("id", "question", "context")} | {k: v for k, v in values.items() if k})
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows: list[Row]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def text_row(context: str, text: str) -> Row:
    return row("Who?", context, text)


def between(text: str, context: str, start: int) -> Row:
    """A row whose offset is `start`, whether the answer stands there or not."""
    answers = {"text": [text], "answer_start": [start]}
    return {"id": "Who?", "question": "Who?", "context": context, "answers": answers}


@dataclass(frozen=True)
class Case:
    """A training file and what becomes of it: the rows kept, by default the good ones; problems; or an error."""

    name: str
    content: bytes
    says: str
    file: str = "rows.jsonl"
    kept: list[Row] = field(default_factory=lambda: GOOD)
    problems: dict[str, list[int]] = field(default_factory=dict)  # reason -> row numbers
    exit_code: int = 0
    parts: tuple[str, ...] = ()  # of the error
    parameters: tuple[str, ...] = ()


def refused(name: str, content: bytes, says: str, *parts: str, file: str = "rows.jsonl", **more: Any) -> Case:
    return Case(name, content, says, file, exit_code=3, parts=parts, **more)


def dropped(name: str, wrong: Row, reason: str, says: str = "", **more: Any) -> Case:
    """Two good rows, the wrong one as row 3, the other good rows."""
    says = says or f"dropped, counted as “{reason}”"
    return Case(name, lines(*GOOD[:2], wrong, *GOOD[2:]), says, problems={reason: [3]}, **more)


def repaired(name: str, wrong: Row, mended: Row, reason: str, says: str = "", kind: str = "repaired") -> Case:
    says = says or f"{kind}, counted as “{reason}”"
    kept = [*GOOD[:2], mended, *GOOD[2:]]
    return Case(name, lines(*GOOD[:2], wrong, *GOOD[2:]), says, kept=kept, problems={reason: [3]})


def same(name: str, content: bytes, file: str, says: str = "the same rows", kept: list[Row] | None = None) -> Case:
    return Case(name, content, says, file, kept=GOOD if kept is None else kept)


UNANSWERED = but(answers={"text": [], "answer_start": []})
EMOJI = "🙂🙂🙂 by Ada, not by Ada Lovelace; Ada"
LONG = ("A dull sentence about nothing. " * 1600) + "Ada wrote it."
SEPARATORS = "By\u2028Ada\u2029and\x85no\x0bone"
OFF = "answer_start was off; the answer stands near by"
NOT_GIVEN = "no answer_start; the answer stands at one place"
GONE = "the answer is not in the context"
WINDOW = "max_seq_length 160"
TOO_LONG = f"the question is too long beside doc_stride 128 tokens of context in a window of {WINDOW}"
SHARED = f"the doc_stride 128 tokens that windows of {WINDOW} share"
CUT = f"no window holds the whole answer, which is longer than {SHARED}"
SURROGATE = "half a surrogate pair is not a character; U+FFFD instead"


def differs(kind: str) -> str:
    return f"an answer differs from the context in {kind}; the context's characters instead"


CASES = [
    # files
    refused("an empty file", b"", "error", "no rows"),
    refused("a CSV file of a header only", b"question,context,answers\n", "error", "no rows", file="rows.csv"),
    refused("blank lines only", b"\n \n\r\n", "error", "no rows"),
    refused(
        "a malformed JSON line", lines(*GOOD[:2]) + b'{"question": oops}\n', "error with the line and its text",
        "line 3", "not valid JSON", "oops",
    ),
    refused(
        "a truncated last JSON line", lines(*GOOD)[:-20], "error with the line: the file was cut off",
        "line 4", "not valid JSON", "the file was cut off",
    ),
    refused("a JSON line that is no object", lines(*GOOD, [1, 2]), "error with the row", "row 5", "list"),
    refused("JSON nested thousands deep", b"[" * 99_999, "error with the line", "line 1", "not usable JSON"),
    refused("binary junk", bytes(range(256)) * 4, "error", "not a text file", "zero bytes"),
    refused("binary junk named .parquet", bytes(range(256)) * 4, "error", "not a Parquet file", file="rows.parquet"),
    refused("a damaged gzip file", gzip.compress(lines(*GOOD))[:-30], "error", "can't be read", file="rows.jsonl.gz"),
    refused("an unknown ending", lines(*GOOD), "error with the endings that are known", ".tsv", file="rows.xlsx"),
    refused(
        "cp1252", '{"question": "Où?"}\n'.encode("cp1252"), "error with the iconv command that converts it",
        "not UTF-8", "iconv -f cp1252",
    ),
    refused(
        "Shift-JIS", '{"question": "誰が書いたのですか。東京は日本の首都である。"}\n'.encode("cp932"),
        "error with the encoding that the bytes suggest, and the command", "not UTF-8", "iconv -f cp932",
    ),
    refused(
        "Big5", '{"question": "誰寫的？臺北是臺灣的首都，人口很多，交通方便。"}\n'.encode("big5"), "the same",
        "not UTF-8", "iconv -f big5",
    ),
    refused(
        "UTF-16 without its mark", lines(*GOOD).decode().encode("utf-16-le"), "error that names the likely encoding",
        "UTF-16 without its byte order mark",
    ),
    same("UTF-16 with its mark", lines(*GOOD).decode().encode("utf-16"), "rows.jsonl"),
    same("UTF-8 with a byte order mark", b"\xef\xbb\xbf" + lines(*GOOD), "rows.jsonl"),
    same("CRLF line ends", lines(*GOOD).replace(b"\n", b"\r\n"), "rows.jsonl"),
    same("blank lines between rows", lines(*GOOD).replace(b"\n", b"\n\n  \n"), "rows.jsonl",
         "the same rows; line numbers stay those of the file"),
    same("gzip", gzip.compress(lines(*GOOD)), "rows.jsonl.gz"),
    same("JSON lines in a file named .json", lines(*GOOD), "rows.json"),
    same("one JSON list", json.dumps(GOOD).encode(), "rows.json"),
    refused("one JSON object of columns, as pandas writes it", b'{"question": {"0": "Who?"}}',
            "error with the option that writes rows", "orient='records'", file="rows.json"),
    same("Parquet", parquet(GOOD), "rows.parquet"),
    same(
        "nested SQuAD, as published", nested(), "rows.json",
        "one row for each question, numbered in that order; questions without answers are unanswerable",
        [*GOOD, {**UNANSWERED, "id": "n", "question": "Why?", "context": GOOD[3]["context"]}],
    ),
    same("the same on one line of a .jsonl file", nested() + b"\n", "rows.jsonl",
         kept=[*GOOD, {**UNANSWERED, "id": "n", "question": "Why?", "context": GOOD[3]["context"]}]),
    Case(
        "nested SQuAD with nulls", nested(nulls=True),
        "the same rows; what holds no questions is passed over and counted by its numbers", "rows.json",
        kept=[*GOOD, {**UNANSWERED, "id": "n", "question": "Why?", "context": GOOD[3]["context"]}],
        problems={"paragraphs without questions": [5, 6], "articles without paragraphs": [2, 3]},
    ),
    refused("nested SQuAD without contexts", b'{"data": [{"paragraphs": [{"qas": [{"question": "Who?"}]}]}]}',
            "error with the reason and the rows", "no context (rows 1)", file="rows.json"),
    refused("nested SQuAD with text for a list", b'{"data": [{"paragraphs": [{"qas": "Who?"}]}]}',
            "error with the article and the paragraph", "article 1, paragraph 1", file="rows.json"),
    refused("nested SQuAD without questions", b'{"data": [{"paragraphs": [{"context": "Ada wrote."}]}]}', "error",
            "holds no questions", file="rows.json"),
    same("a list of paragraphs, as simpletransformers reads it", json.dumps(PARAGRAPHS).encode(), "rows.json"),
    same("one article of paragraphs", json.dumps({"paragraphs": PARAGRAPHS}).encode(), "rows.json"),
    same("one paragraph", json.dumps(PARAGRAPHS[0]).encode(), "rows.json", kept=GOOD[:1]),
    same("Label Studio's JSON", json.dumps([task(r) for r in GOOD]).encode(), "rows.json",
         "the same rows, and a line that says where the answers are taken from"),
    same("Label Studio's JSON_MIN", json.dumps([flat_task(r) for r in GOOD]).encode(), "rows.json",
         "the same rows, and a line that says where the answers are taken from"),
    refused("Label Studio's spans of several labels",
            json.dumps([flat_task(r, label) for r, label in zip(GOOD, "ABAB", strict=True)]).encode(),
            "error with the labels", "any of these labels may mark the answers: A, B", file="rows.json"),
    same("answers as plain text and offsets in columns", columns("answer", "answer_start"), "rows.csv",
         "the same rows, and a line that says which columns were taken", GOOD),
    Case("answers as plain text without offsets", columns("answer_text"), f"repaired, counted as “{NOT_GIVEN}”",
         "rows.csv", problems={NOT_GIVEN: [2, 3, 4, 5]}),
    same("plain text in the column answers", columns("answers", "answer_start"), "rows.csv",
         "the same rows, and a line that says which columns were taken", GOOD),
    same("CSV with quoted newlines", delimited([*GOOD, text_row("By Ada,\nsaid \"he\".", "Ada")], ","), "rows.csv",
         kept=[*GOOD, text_row('By Ada,\nsaid "he".', "Ada")]),
    same("CSV with semicolons, as Excel writes it in much of Europe", delimited(GOOD, ";"), "rows.csv",
         "the same rows, and a line that says so"),
    same("CSV that begins with sep=;", b"sep=;\r\n" + delimited(GOOD, ";"), "rows.csv"),
    same("tabs in a .csv file", delimited(GOOD, "\t"), "rows.csv", "the same rows, and a line that says so"),
    refused("CSV without a header", delimited(GOOD, ",").partition(b"\n")[2],
            "error that names what looks like data", "looks like data", "write a line of names first", file="rows.csv"),
    refused("CSV that ends within quotes", delimited(GOOD, ",") + b'"x","y', "error: the file was cut off",
            "never closed", "cut off", file="rows.csv"),
    refused("CSV with a broken quote", b'question,context\na,b\n"He" said,c\n', "error with the line and how to quote",
            "broken quotes", "line 3", file="rows.csv"),
    refused("CSV with a field too many", b"question,context\na,b,c\n", "error with the line", "line 2", "3 fields",
            file="rows.csv"),
    refused("two columns of one name", b"question,context,question\na,b,c\n", "error", "two columns", file="rows.csv"),
    same(
        "TSV with loose quotes", tsv('"Ada" wrote', 'He is 5" short, Ada', '"Ada began'), "rows.tsv",
        "the same rows: a quote counts only where it encloses the field",
        [row(f"Who? {i}", c, "Ada") for i, c in enumerate(['"Ada" wrote', 'He is 5" short, Ada', '"Ada began'])],
    ),
    # columns
    refused(
        "a missing column", lines({"questions": "q", "context": "c"}), "error with the columns there are",
        "no column 'question'", "did you mean questions?", "questions, context",
    ),
    refused("a column parameter with a slip", lines(*GOOD), "error with the likely name", "did you mean answers?",
            parameters=("--answers_key", "answer")),
    refused(
        "no usable row at all", lines(but(question=""), but(context="")), "error with the reasons and their rows",
        "no usable row is left", "no question (rows 1)", "no context (rows 2)",
    ),
    refused(
        "more than max_dropped_fraction of the rows unusable", lines(*GOOD, but(question="")),
        "error with the reasons and the value that allows it", "1 of 5 rows", "--max_dropped_fraction 0.21",
        parameters=("--max_dropped_fraction", "0.1"),
    ),
    # rows
    dropped("no question in some rows", but(question=None), "no question"),
    dropped("a blank question", but(question=" \t"), "no question"),
    dropped("a context that is a number", but(context=7), "no context"),
    dropped("null answers", but(answers=None), "no answers",
            "dropped from training and validation as “no answers”; predicted and not scored in evaluation"),
    repaired("[\"\"] as answers", answer([""], [0]), UNANSWERED, "", "an unanswerable question"),
    repaired("empty lists as answers", answer([], []), UNANSWERED, "", "an unanswerable question"),
    repaired("is_impossible true beside an answer", but(is_impossible=True), UNANSWERED,
             "is_impossible is true beside an answer; read as unanswerable"),
    repaired("is_impossible true without answers", but(is_impossible="True", answers=None), UNANSWERED, "",
             "an unanswerable question"),
    repaired("is_impossible false without an answer", {**UNANSWERED, "is_impossible": False}, UNANSWERED,
             "is_impossible is false, but there is no answer; read as unanswerable", kind="kept"),
    repaired("is_impossible neither true nor false", but(is_impossible="perhaps"), but(),
             "is_impossible is neither true nor false; not heeded", kind="kept"),
    repaired("CANNOTANSWER at the end of the context, as in QuAC", between("CANNOTANSWER", "By Ada. CANNOTANSWER", 8),
             {**UNANSWERED, "id": "Who?", "question": "Who?", "context": "By Ada. CANNOTANSWER"},
             "CANNOTANSWER at the end of the context means that there is no answer; no answer instead"),
    repaired("an answer in place of lists", answer("Ada Lovelace", 0), but(), "", "the same row"),
    repaired("a list of answer objects", but(answers=[{"text": "Ada Lovelace", "answer_start": 0}]), but(), "",
             "the same row"),
    repaired("offsets as strings", answer(["1843"], ["31"]), answer(["1843"], [31]), "", "the same row"),
    repaired("offsets as whole floats", answer(["1843"], [31.0]), answer(["1843"], [31]), "", "the same row"),
    same("answers as JSON text in CSV", delimited(GOOD, ","), "rows.csv"),
    same("answers as a Python repr in CSV", delimited(GOOD, ",", repr), "rows.csv"),
    same("answers as NumPy's repr in CSV, as pandas writes them", delimited(GOOD, ",", as_pandas_writes), "rows.csv"),
    dropped("answers that are neither", but(answers="Ada"), "answers are neither JSON nor a Python literal"),
    dropped("answers that NumPy cut short", but(answers="{'text': array(['a', ..., 'z']), 'answer_start': [0]}"),
            CUT_SHORT),
    dropped("answers of another shape", but(answers={"span": [0, 3]}),
            "answers are not an object with 'text' and 'answer_start'"),
    dropped("more texts than offsets", answer(["Ada", "1843"], [0]),
            "answers have another number of texts than of offsets"),
    dropped("an offset that is no number", answer(["Ada"], ["first"]),
            "an answer's text is not a string, or its offset is not a number"),
    repaired("an offset that is null", answer(["1843"], [None]), answer(["1843"], [31]), NOT_GIVEN),
    repaired("an offset a little off", answer(["1843"], [20]), answer(["1843"], [31]), OFF),
    repaired("an offset far off", answer(["Ada"], [60]), answer(["Ada"], [0]), 
             "answer_start is beyond the context; the answer stands at one place"),
    repaired("an offset of 0 for any answer", answer(["1843"], [0]), answer(["1843"], [31]),
             "answer_start is 0; the answer stands at one place"),
    repaired("a negative offset", answer(["1843"], [-1]), answer(["1843"], [31]),
             "answer_start is negative; the answer stands at one place"),
    dropped("a wrong offset between two equal answers", between("Ada", "Ada met Ada", 4),
            "answer_start was off, and the answer stands at two places equally near"),
    dropped("an offset of 0 and several equal answers", between("Ada", "By Ada, for Ada", 0),
            "answer_start is 0, and the answer stands at several places"),
    dropped("an answer that is part of other words alone", between("art", "Parts started", 3),
            "the answer stands inside other words alone"),
    dropped("an answer that is not in its context", answer(["Grace"], [0]), GONE),
    repaired("an answer in other capitals", answer(["ADA LOVELACE"], [0]), but(), differs("case")),
    repaired("an answer with another white space", between("Ada\nLovelace", "By Ada Lovelace.", 3),
             text_row("By Ada Lovelace.", "Ada Lovelace"), differs("white space")),
    repaired("an answer in another Unicode form", between("Zoë", "By Zoe\u0308.", 3),
             text_row("By Zoe\u0308.", "Zoe\u0308"), differs("Unicode form")),
    repaired("white space around an answer", answer([" wrote "], [12]), answer(["wrote"], [13]),
             "white space or invisible characters around an answer; taken off"),
    repaired(
        "offsets in UTF-16 units", {**text_row(EMOJI, "Ada"), "answers": {"text": ["Ada"], "answer_start": [22]}},
        {**text_row(EMOJI, "Ada"), "answers": {"text": ["Ada"], "answer_start": [19]}},
        "answer_start counted UTF-16 units",
    ),
    repaired(
        "offsets in bytes", {**text_row(EMOJI, "Ada"), "answers": {"text": ["Ada"], "answer_start": [28]}},
        {**text_row(EMOJI, "Ada"), "answers": {"text": ["Ada"], "answer_start": [19]}}, "answer_start counted bytes",
    ),
    repaired("duplicate ids", but(id=GOOD[0]["id"]), but(id=GOOD[0]["id"]),
             "its id has occurred before; `row` tells them apart", kind="kept"),
    same("no ids", lines(*({k: v for k, v in r.items() if k != "id"} for r in GOOD)), "rows.jsonl",
         "the row number is the id", [{**r, "id": str(i)} for i, r in enumerate(GOOD, start=1)]),
    same("ids in a column uid, _id, qid, question_id or guid",
         lines(*({("qid" if k == "id" else k): v for k, v in r.items()} for r in GOOD)), "rows.jsonl"),
    same("integer ids", lines(*({**r, "id": i} for i, r in enumerate(GOOD))), "rows.jsonl", "the same, as text",
         [{**r, "id": str(i)} for i, r in enumerate(GOOD)]),
    dropped("a question longer than the window", but(question="why " * 300), TOO_LONG,
            f"dropped, counted as “{TOO_LONG}”; in validation and test kept, counted, answered with nothing"),
    dropped("an answer longer than what windows share", text_row(LONG, LONG[:6000].strip()), CUT,
            f"dropped, counted as “{CUT}”; in validation and test kept, counted"),
    dropped("an answer of characters that the tokenizer drops", text_row("The \u200e sign has no width.", "\u200e"),
            "the answer is made of characters that the tokenizer drops"),
    same("an answer that ends in a vowel sign that the tokenizer drops", lines(*GOOD, text_row("आदा ने लिखी।", "आदा ने")),
         "rows.jsonl", kept=[*GOOD, text_row("आदा ने लिखी।", "आदा ने")]),
    refused("questions too long in most rows", lines(*GOOD, *[but(question="why " * 300)] * 5),
            "error with the parameters that mend it", "5 of 9 rows", "fix: --doc_stride below 128, or allow it"),
    refused("all answers null", lines(*[{**r, "answers": None} for r in GOOD]),
            "error with that reason", "no usable row is left", "dropped 4: no answers"),
    same("a context of 50,000 characters", lines(*GOOD, text_row(LONG, "Ada")), "rows.jsonl",
         "the same row, in as many windows as it takes", [*GOOD, text_row(LONG, "Ada")]),
    # characters
    same("U+2028 and other separators inside values", lines(*GOOD, text_row(SEPARATORS, "Ada")), "rows.jsonl",
         kept=[*GOOD, text_row(SEPARATORS, "Ada")]),
    same("emoji", lines(*GOOD, text_row(EMOJI, "Ada Lovelace")), "rows.jsonl",
         kept=[*GOOD, text_row(EMOJI, "Ada Lovelace")]),
    same("right-to-left text", lines(*GOOD, text_row("كتبت آدا لوفليس الملاحظة", "لوفليس")), "rows.jsonl",
         kept=[*GOOD, text_row("كتبت آدا لوفليس الملاحظة", "لوفليس")]),
    same("Chinese, Japanese, Korean", lines(*GOOD, text_row("東京は日本の首都である。서울", "日本")), "rows.jsonl",
         kept=[*GOOD, text_row("東京は日本の首都である。서울", "日本")]),
    Case("half a surrogate pair",
         lines(*GOOD) + json.dumps({**text_row("By Ada.", "Ada"), "question": "Who \ud83d?"}).encode(),
         f"repaired, counted as “{SURROGATE}”", kept=[*GOOD, {**text_row("By Ada.", "Ada"), "question": "Who \ufffd?"}],
         problems={SURROGATE: [5]}),
]  # fmt: skip


def preprocessed(prepared: Path, folder: Path, train: Path, *more: str) -> int:
    """The exit code of preprocess."""
    words = ["--task", "question_answering", "--train_file_path", str(train), *more]
    words += ["--model_selector_output", str(prepared / "model"), "--output_dir", str(folder / "out")]
    for split in ("validation", "test"):
        words += [f"--{split}_file_path", str(write_jsonl(folder / f"{split}.jsonl", GOOD))]
    try:
        run_main(
            preprocess.main,
            ["--max_dropped_fraction", "0.5", *words] if "--max_dropped_fraction" not in words else words,
        )
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def normal(row: Row) -> Row:
    return {key: row[key] for key in ("id", "question", "context", "answers")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / case.file
    file.write_bytes(case.content)
    assert preprocessed(prepared, tmp_path, file, *case.parameters) == case.exit_code
    shown = capsys.readouterr()
    if case.exit_code:
        assert "Traceback" not in shown.err
        assert str(file) in shown.err or "where: train" in shown.err
        assert [part for part in case.parts if part not in shown.err] == []
        return
    report = Preprocessed.read(tmp_path / "out", "question_answering").splits["train"]
    rows = read_rows(Preprocessed.rows_file(tmp_path / "out", "train"))
    assert [normal(r) for r in rows] == [normal(r) for r in case.kept]
    expected = {reason: numbers for reason, numbers in case.problems.items() if reason}
    assert {reason: problem["rows"] for reason, problem in report.problems.items()} == expected
    assert all(reason in shown.out for reason in expected)
    assert report.rows_read == report.rows_kept + sum(
        p["count"] for p in report.problems.values() if p["action"] == "dropped"
    )


def test_folder_for_a_file(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    assert preprocessed(prepared, tmp_path, tmp_path / "rows.jsonl") == 2
    assert f"{tmp_path / 'rows.jsonl'} is a folder" in capsys.readouterr().err


def test_unreadable_file(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc/self/mem opens, also for root, and fails when it is read."""
    (tmp_path / "rows.jsonl").symlink_to("/proc/self/mem")
    assert preprocessed(prepared, tmp_path, tmp_path / "rows.jsonl") == 3
    error = capsys.readouterr().err
    assert "rows.jsonl can't be read" in error
    assert "Input/output error" in error


def test_question_too_long_in_validation(prepared: Path, tmp_path: Path) -> None:
    rows = [*GOOD, but(question="why " * 300)]
    files = {split: str(write_jsonl(tmp_path / f"{split}.jsonl", rows)) for split in ("validation", "test")}
    words = ["--task", "question_answering", "--model_selector_output", str(prepared / "model")]
    words += [
        "--train_file_path",
        str(write_jsonl(tmp_path / "train.jsonl", GOOD)),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    preprocess.main([*words, *(word for split, file in files.items() for word in (f"--{split}_file_path", file))])
    reports = Preprocessed.read(tmp_path / "o", "question_answering").splits
    assert [(reports[split].rows_kept, reports[split].windows) for split in files] == [(5, 4), (5, 0)]
    expected = {f"{TOO_LONG}, so its prediction is empty": {"action": "kept", "count": 1, "rows": [5]}}
    assert [reports[split].problems for split in files] == [expected, {}]
    model = ["--pytorch_model_folder", str(prepared / "model" / "model"), "--preprocess_output", str(tmp_path / "o")]
    evaluation.main(["--task", "question_answering", *model, "--evaluation_result", str(tmp_path / "e")])
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["problems"] == expected


def test_full_disk(prepared: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle of the encoded rows."""
    rows = [row(f"Who {i}?", f"Ada wrote note {i} in {1800 + i}.", "Ada") for i in range(200)]
    words = ["--task", "question_answering", "--train_file_path", str(write_jsonl(tmp_path / "rows.jsonl", rows))]
    words += ["--model_selector_output", str(prepared / "model"), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "finetune.preprocess", *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 8
    assert "storage error:" in done.stderr
    assert "can't be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "preprocess.json").exists()


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/out"), "/data/out can't be written"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/out"), "that you may write to"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "more room"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "more room"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/out"), None),
        (RuntimeError("shapes differ"), None),
    ],
)
def test_storage_errors(error: Exception, found: str | None) -> None:
    known = storage_error(error)
    assert (known is None) if found is None else (known is not None and found in str(known))


OTHERS = [
    ("a folder for a file", "error", 3),
    ("a file that can't be read", "error with the reason of the system", 3),
    ("a full disk", "error with the file; the folder lacks preprocess.json, so no later step takes it", 8),
]


ENTRIES = [(case.name, case.says, case.exit_code) for case in CASES] + OTHERS


def table(entries: list[tuple[str, str, int]]) -> str:
    """The table in docs/data.md of (input, what happens, exit code)."""
    cells = [f"| {name} | {says} | {code or ''} |".replace("\u2028", " ") for name, says, code in entries]
    return "\n".join(["| input | what happens | exit code |", "| --- | --- | --- |", *cells]) + "\n"


def around(task: str) -> tuple[str, str, str]:
    """The page before, in and after the table of a task."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin := f"<!-- cases of {task} -->\n")
    inside, end, after = rest.partition("<!-- end of cases -->\n")
    return before + begin, inside, end + after


def write(task: str, entries: list[tuple[str, str, int]]) -> None:
    before, _, after = around(task)
    PAGE.write_text(before + table(entries) + after, encoding="utf-8")
    print(f"wrote {os.path.relpath(PAGE, ROOT)}")


def test_the_page_lists_every_case() -> None:
    """If this fails: python -m tests.test_bad_input."""
    assert around("question_answering")[1] == table(ENTRIES)


if __name__ == "__main__":
    write("question_answering", ENTRIES)
