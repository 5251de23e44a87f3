"""Valid files, mutated at random 10,000 times: the readers and both tasks give rows, all accounted for, or an error."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from finetune.core.errors import DataError
from finetune.data.readers import read_table
from finetune.data.table import Audit
from finetune.params.datapreprocess import QuestionAnsweringColumns, TokenClassificationColumns
from finetune.tasks.question_answering import rows as qa_rows
from finetune.tasks.token_classification import rows as tc_rows
from finetune.tasks.token_classification import windows

Json = dict[str, Any]
MUTATIONS, SEEDS = 500, 20  # of each seed: 10,000 in all

WORDS = ["Ada", "Łódź", "東京", "New-York", "3.5", "नमस्ते", "#win", '"', "é", ",", ";"]
TAGS = ["O", "O", "B-PER", "I-PER", "B-LOC"]
ENCODINGS = ["utf-16", "utf-16-le", "cp1252", "cp932", "big5", "utf-8-sig", "latin-1"]
JUNK = [
    "\t",
    ";",
    '"',
    "'",
    "{",
    "]",
    "\x00",
    "\u200b",
    "\u2028",
    "\ufeff",
    "-DOCSTART- -X- O",
    "# a b",
    "...",
    "\ud800",
]
JUNK += ["null", "NaN", "1e999", "-1", "is_impossible", "\r", "\n\n", "\x85", "O", "_", "0"]


def sentences(chance: random.Random) -> list[Json]:
    made = []
    for _ in range(chance.randrange(2, 6)):
        tokens = chance.choices(WORDS, k=chance.randrange(1, 6))
        made.append({"tokens": tokens, "ner_tags": chance.choices(TAGS, k=len(tokens))})
    return made


def questions(chance: random.Random) -> list[Json]:
    made: list[Json] = []
    for i in range(chance.randrange(2, 6)):
        words = chance.choices(WORDS, k=9)
        at = chance.randrange(9)
        start = len(" ".join([*words[:at], ""]))
        answers = (
            {"text": [words[at]], "answer_start": [start]}
            if chance.random() < 0.8
            else {"text": [], "answer_start": []}
        )
        made.append({"id": f"q{i}", "question": f"Who {i}?", "context": " ".join(words), "answers": answers})
    return made


def squad(rows: list[Json]) -> list[Json]:
    return [
        {"context": r["context"], "qas": [{"id": r["id"], "question": r["question"], "answers": [
            {"text": text, "answer_start": start}
            for text, start in zip(r["answers"]["text"], r["answers"]["answer_start"], strict=True)
        ]}]}
        for r in rows
    ]  # fmt: skip


def spans(rows: list[Json]) -> list[Json]:
    """Texts with the characters of their words, as annotators write them."""
    made = []
    for r in rows:
        text, label = " ".join(r["tokens"]), []
        for i, (word, tag) in enumerate(zip(r["tokens"], r["ner_tags"], strict=True)):
            start = len(" ".join([*r["tokens"][:i], ""]))
            label += [[start, start + len(word), tag[2:]]] if tag != "O" else []
        made.append({"text": text, "label": label})
    return made


def json_lines(rows: list[Json]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def delimited(delimiter: str) -> Callable[[list[Json]], str]:
    def text(rows: list[Json]) -> str:
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        writer.writerows([value if isinstance(value, str) else json.dumps(value) for value in r.values()] for r in rows)
        return file.getvalue()

    return text


def conll(between: str) -> Callable[[list[Json]], str]:
    def text(rows: list[Json]) -> str:
        return "".join(
            "".join(f"{word}{between}{tag}\n" for word, tag in zip(r["tokens"], r["ner_tags"], strict=True)) + "\n"
            for r in rows
        )

    return text


QA: dict[str, Callable[[list[Json]], str]] = {
    "a.jsonl": json_lines,
    "a.json": json.dumps,
    "squad.json": lambda rows: json.dumps({"data": [{"paragraphs": squad(rows)}]}),
    "list.json": lambda rows: json.dumps(squad(rows), indent=1),
    "a.csv": delimited(","),
    "b.csv": delimited(";"),
    "a.tsv": delimited("\t"),
}
TC: dict[str, Callable[[list[Json]], str]] = {
    "a.jsonl": json_lines,
    "a.csv": delimited(","),
    "a.conll": conll("\t"),
    "b.conll": conll(" "),
    "spans.jsonl": lambda rows: json_lines(spans(rows)),
    "spans.json": lambda rows: json.dumps([[r["text"], {"entities": r["label"]}] for r in spans(rows)]),
}


def mutated(text: str, chance: random.Random) -> bytes:
    """The text after one to three mutations, in some encoding."""
    encoding = "utf-8"
    for _ in range(chance.randrange(1, 4)):
        lines = text.split("\n")
        i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
        at, to = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
        match chance.randrange(9):
            case 0:
                text = "\n".join(lines[:i] + lines[i + 1 :])
            case 1:
                lines[i], lines[j] = lines[j], lines[i]
                text = "\n".join(lines)
            case 2:
                text = "\n".join([*lines[:i], chance.choice(JUNK), *lines[i:]])
            case 3:
                text = text[:at] + chance.choice(JUNK) + text[at:]
            case 4:
                text = text[:at] + text[min(to, at + 20) :]
            case 5:
                text = text[: max(at, to)]  # cut off
            case 6:
                one, other = chance.choice("\t ,;:{}[]\"'0123456789"), chance.choice(JUNK)
                text = text.replace(one, other, chance.randrange(1, 4))
            case 7:
                lines[i] = "\t".join(reversed(lines[i].split("\t")))
                text = "\n".join(lines)
            case _:
                encoding = chance.choice(ENCODINGS)
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_mutated_files(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    usable = 0
    for _ in range(MUTATIONS):
        if chance.random() < 0.5:
            name, columns, validate = chance.choice(list(QA)), QuestionAnsweringColumns(), qa_rows.validate
            text = QA[name](questions(chance))
        else:
            name, columns, validate = chance.choice(list(TC)), TokenClassificationColumns(), tc_rows.validate
            text = TC[name](sentences(chance))
        content = mutated(text, chance)
        (tmp_path / name).write_bytes(content)
        audit = Audit()
        try:
            rows = validate(read_table(tmp_path / name), columns, audit)
        except DataError as error:
            assert str(tmp_path / name) in str(error)
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}: {content!r}") from error
        usable += 1
        assert len(rows) + audit.dropped <= content.count(b"\n") + content.count(b'"') + content.count(b"\r") + 2
        for row in rows:
            for text, start in zip(*(row["answers"] or {}).values(), strict=True) if "question" in row else ():
                assert row["context"].startswith(text, start), content
            assert "question" in row or row["tags"] is None or len(row["tags"]) == len(row["tokens"])
    assert usable > MUTATIONS // 6


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.conll", "spans.jsonl"])
def test_every_row_is_accounted_for(name: str, tmp_path: Path) -> None:
    """Values are broken, each within its row: as many rows are kept or dropped as were written."""
    chance = random.Random(0)
    for _ in range(100):
        made = spans(sentences(chance)) if name.startswith("spans") else sentences(chance)
        column = chance.choice(list(made[0]))
        for row in chance.sample(made, chance.randrange(len(made))) if name != "a.conll" else ():
            row[column] = chance.choice([None, "", 7, [], ["O"], [None], "[1", [[0, 99, "X"]], {"a": 1}, float("nan")])
        (tmp_path / name).write_text(TC[name](made) if not name.startswith("spans") else json_lines(made))
        audit = Audit()
        rows = tc_rows.validate(read_table(tmp_path / name), TokenClassificationColumns(), audit)
        assert len(rows) + audit.dropped == len(made)


def test_parquet_of_any_types(tmp_path: Path) -> None:
    chance = random.Random(0)
    values = [
        [None, "a"],
        [1, 2],
        [True, None],
        [[1], None],
        [{"text": ["a"]}, None],
        [b"\xff", None],
        [1.5, float("nan")],
    ]
    for _ in range(200):
        table = pyarrow.table(
            {key: chance.choice(values) for key in ("question", "context", "answers", "tokens", "ner_tags")}
        )
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        for validate, columns in (
            (qa_rows.validate, QuestionAnsweringColumns()),
            (tc_rows.validate, TokenClassificationColumns()),
        ):
            audit = Audit()
            assert len(validate(read_table(tmp_path / "a.parquet"), columns, audit)) + audit.dropped == 2


DIGITS = "9" * 5000, f"0x{'f' * 5000}"  # Python writes no more than 4,300 as text


@pytest.mark.parametrize("digits", DIGITS)
def test_numbers_of_thousands_of_digits(digits: str, tmp_path: Path) -> None:
    answers = f"{{'text': ['Ada'], 'answer_start': [{digits}]}}"
    (tmp_path / "a.csv").write_text(f'question,context,answers\nWho?,Ada.,"{answers}"\nWho?,Ada.,\n')
    audit = Audit()
    rows = qa_rows.validate(read_table(tmp_path / "a.csv"), QuestionAnsweringColumns(), audit)
    assert (len(rows), audit.dropped) == (1, 1)
    for tokens, tags in (
        (f"[{digits}, 'b']", "['O', 'O']"),
        ("['a', 'b']", f"[{digits}, 1]"),
        ("['a' 'b']", f"[{digits} 1]"),
    ):
        (tmp_path / "a.csv").write_text(f'tokens,ner_tags\n"{tokens}","{tags}"\n')
        audit = Audit()
        rows = tc_rows.validate(read_table(tmp_path / "a.csv"), TokenClassificationColumns(), audit)
        assert len(rows) + audit.dropped == 1


def test_tags_of_thousands_of_digits_are_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("".join(f"a {tag}\n\n" for tag in ("1", "2", DIGITS[0]) * 5))
    rows = tc_rows.validate(read_table(tmp_path / "a.conll"), TokenClassificationColumns(), Audit())
    params: Any = SimpleNamespace(max_seq_length=9, doc_stride=0, pad_to_max_length=False)
    tokenizer: Any = SimpleNamespace(num_special_tokens_to_add=lambda pair: 2)
    assert windows.fit(params, {"train": rows}, 9, tokenizer).labels == ["1", "2", DIGITS[0]]
