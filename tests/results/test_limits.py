"""What a request may hold is counted, and what is too much is told with its limit."""

import numpy as np
import pytest

from finetune.results.limits import LIMITS, UNLIMITED, size, too_much


@pytest.mark.parametrize(
    ("value", "characters"),
    [("", 0), ("Ada", 3), (["Ada", ""], 5), (np.array(["Ada"], dtype=object), 4), ([["a"], "b"], 5), (None, 1), (3, 1)],
)
def test_characters(value: object, characters: int) -> None:
    assert size(value) == characters


def test_too_much_is_told_with_its_limit() -> None:
    row = {"question": "Who?", "context": "Ada."}
    assert too_much([row] * 10_000, LIMITS) == too_much([{"question": "", "context": "a" * 1_000_000}], LIMITS) == ""
    said = too_much([row] * 10_001, LIMITS)
    assert said.startswith(
        "the request has 10,001 rows, where max_request_rows is 10,000; send less at a time, or serve"
    )
    assert "1,000,001 characters, where max_request_characters is 1,000,000" in too_much(
        [{"a": "a" * 1_000_001}], LIMITS
    )
    assert "max_request_characters" in too_much([{"input_string": [""] * 1_000_001}], LIMITS)
    assert too_much([row] * 10_001, UNLIMITED) == ""
