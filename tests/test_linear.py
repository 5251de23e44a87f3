"""Texts made to be slow: what is read takes time in proportion to its length, whatever it holds."""

import itertools
import re
import time
from pathlib import Path

import pytest

from finetune.azure.pipeline_yaml import fill_command
from finetune.data.readers import read_table
from finetune.data.table import Table
from finetune.params.datapreprocess import TokenClassificationColumns
from finetune.params.schema import did_you_mean
from finetune.tasks.question_answering import metrics
from finetune.tasks.question_answering import rows as qa_rows
from finetune.tasks.token_classification import rows as tc_rows
from finetune.tasks.token_classification import sentences

BEGINNINGS = ["", "a", "['", "${{", "$[[", "0"]
REPEATED = [
    " ", "\n", "\r\n", "a", "a ", "'", '"', "' '", "[", "]", "0", ".", "a.", "(", ")", "${{ ", "${{a", "$[[", "}}",
    " }", "é", "東", "B-X ",
]  # fmt: skip
SEARCHED = {
    "_PARENT_INPUT", "_REFERENCE", "_QUOTED_REFERENCE", "_GROUP", "_LINE_END", "_BLANK_LINE", "_LONE_SURROGATE", "WORD",
    "_TEXTS", "_ITEM", "_ARTICLES",
}  # fmt: skip
# Twice as long a text takes 4 times as long where a pattern is not linear: at 10,000 characters a second and more.
LENGTHS = pytest.mark.parametrize(
    ("length", "seconds"), [(10_000, 0.3), pytest.param(100_000, 2.0, marks=pytest.mark.thorough)]
)


def patterns() -> dict[str, re.Pattern[str]]:
    """Every pattern that is kept under a name in our modules, and that what users write is matched with."""
    import finetune.azure.pipeline_yaml as yaml
    from finetune.data import conll, delimited, values
    from finetune.tasks.question_answering import placing
    from finetune.tasks.token_classification import annotations, schemes

    modules = (yaml, conll, delimited, values, placing, metrics, qa_rows, annotations, schemes, sentences, tc_rows)
    found = {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    }
    found |= {f"{tc_rows.__name__}.{name}": re.compile(vars(tc_rows)[name]) for name in ("_ITEM", "_NUMBER")}
    return found


def test_every_pattern_is_known_here() -> None:
    assert len(patterns()) > 20


@LENGTHS
@pytest.mark.parametrize("name", patterns())
def test_patterns(name: str, length: int, seconds: float) -> None:
    pattern = patterns()[name]
    for begin, part, end in itertools.product(BEGINNINGS, REPEATED, ("", "!")):
        text = begin + part * (length // len(part)) + end
        given = text[:200] if name.endswith("delimited._SENTENCE") else text  # as it is used
        started = time.process_time()
        if name.rpartition(".")[2] in SEARCHED:
            pattern.sub("", given)
        else:
            pattern.match(given)
            pattern.fullmatch(given)
        assert time.process_time() - started < seconds, (begin, part, end)


def test_blank_lines_at_the_end_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("word,tag\n" + "Ada,B-PER\nran,O\n" * 20 + "\n" * 100_000)
    started = time.process_time()
    assert len(read_table(tmp_path / "a.csv").rows) == 40
    assert time.process_time() - started < 2


def test_quotes_in_the_cells_of_sentences() -> None:
    rows = [{"sentence": 1, "word": "[" + "'" * 100_000, "tag": "O"} for _ in range(3)]
    table = Table("a", ("sentence", "word", "tag"), rows, [1, 2, 3])
    started = time.process_time()
    sentences.gathered(table, TokenClassificationColumns())
    assert time.process_time() - started < 2


def test_names_that_nobody_meant() -> None:
    started = time.process_time()
    assert did_you_mean("a" * 100_000, ["a" * 100_001]) == ""
    did_you_mean("column", [f"column{i}" * 3 for i in range(1_000_000)])
    assert time.process_time() - started < 2


def test_commands() -> None:
    for text in ("${{" + " " * 100_000, "$[[" * 33_000, "${{ a" * 20_000, "'${{" * 25_000):
        started = time.process_time()
        fill_command(text, {}, {})
        assert time.process_time() - started < 2
