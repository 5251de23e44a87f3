"""What a user sees."""

import pytest

from finetune.core.console import NAME, say, some


def test_eight_of_many_names_are_shown() -> None:
    assert some(list("abcdefgh")) == "a, b, c, d, e, f, g, h"
    assert some(list("abcdefghi")) == "a, b, c, d, e, f, g, h, … 1 more"


def test_long_names_and_lines_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(some(["a" * 1_000_000] * 9)) < 9 * NAME
    say("a" * 1_000_000)
    assert len(capsys.readouterr().out) < 5000
