"""Rows are encoded part by part: as many as may be, in order, each once."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.tasks import encoding
from finetune.tasks.question_answering import TASK
from finetune.tasks.token_classification import TASK as TAGS
from tests.tasks.question_answering.conftest import row, state, wordpiece


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wordpiece(tmp_path_factory.mktemp("wordpiece"))


@pytest.fixture(scope="module")
def five_hundred_characters() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "CHARACTERS", 500)
        yield


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(3, 600), max_size=20), most=st.integers(1, 9))
def test_parts(tokenizer: Any, five_hundred_characters: None, sizes: list[int], most: int) -> None:
    """No part holds more than it may, unless it is one row, and no two neighbours would go together."""
    rows = [row("a" * (size - 2), question="a?") for size in sizes]
    found = list(encoding.encoded(rows, TASK, tokenizer, state(), most))
    assert [one for part, _ in found for one in part] == rows
    for part, columns in found:
        assert columns["input_ids"] == TASK.data.encode(part, tokenizer, state())["input_ids"]
    parts = [[TASK.data.characters(one) for one in part] for part, _ in found]
    assert all(len(part) <= most and (sum(part) <= 500 or len(part) == 1) for part in parts)
    assert all(len(part) == most or sum(part) + after[0] > 500 for part, after in pairwise(parts))


def test_characters_of_rows() -> None:
    assert TASK.data.characters({"question": "Who?", "context": "It was Ada."}) == 15
    assert TAGS.data.characters({"tokens": ["Ada", "", "wrote"]}) == 8
