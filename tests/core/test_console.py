"""What a user sees."""

from finetune.core.console import some


def test_eight_of_many_names_are_shown() -> None:
    assert some(list("abcdefgh")) == "a, b, c, d, e, f, g, h"
    assert some(list("abcdefghi")) == "a, b, c, d, e, f, g, h, … 1 more"
