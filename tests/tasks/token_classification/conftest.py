"""Rows, tables and states to try things on; the kinds of tokenizers are those of question answering."""

from typing import Any

from hypothesis import strategies as st

from finetune.data.table import Audit, Row, Table
from finetune.params.datapreprocess import TokenClassificationColumns
from finetune.tasks.token_classification import rows as tc_rows
from finetune.tasks.token_classification import windows as tc_windows
from tests.tasks.question_answering.conftest import tokenizer  # noqa: F401  (a fixture)

WORDS = st.text(st.sampled_from("aábcdeABÉ 019.,-'한漢字🙂👩‍👧½ﬁñשלع\u0301\u0308\u200b\ufeff\u3000\t"), max_size=9)
SENTENCES = st.lists(WORDS, min_size=1, max_size=80)
TYPES = ("PER", "creative-work", "_")


def state(**values: Any) -> tc_windows.State:
    defaults = {
        "max_seq_length": 64, "doc_stride": 8, "pad_to_max_length": False, "labels": ["B-PER", "I-PER", "O"],
        "scheme": "IOB2", "wordless": "O",
    }  # fmt: skip
    return tc_windows.State(**{**defaults, **values})


def row(*tokens: str, tags: str | None = None, text: str | None = None) -> Row:
    return {"id": "1", "row": 1, "text": text, "tokens": list(tokens), "tags": None if tags is None else tags.split()}


def validated(*rows: Row, **columns: str) -> tuple[list[Row], Audit]:
    audit = Audit()
    names = tuple(dict.fromkeys(name for r in rows for name in r))
    table = Table("file.csv", names, list(rows), list(range(11, 11 + len(rows))))
    return tc_rows.validate(table, TokenClassificationColumns(**columns), audit), audit
