"""Messages stay short, whatever a user's value is."""

import pytest

from finetune.core.errors import FAULTS, LONGEST, DataError, Fault, ParameterError, first_line, shortened


def test_long_values_lose_their_middle() -> None:
    assert shortened("a" * LONGEST) == "a" * LONGEST
    text = shortened(f"begin{'x' * 1_000_000}end")
    assert text.startswith("begin") and text.endswith("end") and "… (999," in text and len(text) < LONGEST
    assert len(first_line(ValueError("a" * 5000))) < LONGEST


def test_a_fault_is_a_few_kilobytes_at_most() -> None:
    long = "x" * 1_000_000
    text = str(DataError(Fault(long, long, long, long)))
    assert len(text) < 5 * LONGEST and text.startswith("data error: xxx") and text.count("…") == 8


def test_of_many_faults_the_first_are_shown() -> None:
    error = DataError(*(Fault(f"fault {i}", fix="mend it") for i in range(3000)))
    assert len(error.faults) == 3000
    assert str(error).count("fix: mend it") == FAULTS
    assert str(error).splitlines()[-1] == "data error: … 2,980 more like these"
    assert "more" not in str(DataError(*error.faults[:FAULTS]))


@pytest.mark.parametrize("count", [1, 7])
def test_each_part_stands_on_its_own_line(count: int) -> None:
    faults = [Fault("what", "where", "why", "fix")] * count
    assert str(DataError(*faults)) == "\n".join(["data error: what\n  where: where\n  why: why\n  fix: fix"] * count)


def test_a_token_of_the_hub_is_not_shown() -> None:
    token = "hf_" + "aB3" * 11
    shown = str(ParameterError(Fault(f"unexpected word '{token}'", why=f"{token}.", fix="hf_datasets1 is a name")))
    assert token not in shown and shown.count("hf_…") == 2 and "hf_datasets1" in shown
