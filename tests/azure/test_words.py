"""The words of `finetune submit`, `register`, `deploy` and `pipeline`."""

from finetune.azure.words import Line, read_line

OPTIONS, FLAGS = ("--output", "--name"), ("--force",)


def read(*words: str) -> tuple[Line, list[str]]:
    line, faults = read_line(words, OPTIONS, FLAGS, values=True)
    return line, [fault.what for fault in faults]


def test_words_may_stand_in_any_order() -> None:
    expected = Line(
        ("file",), {"--output": "out", "--name": "a=b"}, frozenset({"--force"}), {"x": "1", "y": "a=b", "z": ""}
    )
    assert read("file", "--set", "x=1", "y=a=b", "z=", "--force", "--output", "out", "--name=a=b") == (expected, [])
    assert read("--output=out", "--force", "file", "--name", "a=b", "--set", "x=1", "--set", "y=a=b", "z=") == (
        expected,
        [],
    )
    assert read("--set", "x=1", "--output", "out", "file")[0].words == ("file",)


def test_every_wrong_word_is_named() -> None:
    assert read("--nmae", "--set", "x", "--output", "--force", "--name")[1] == [
        "unknown option --nmae; did you mean --name?",
        "unexpected word 'x'",
        "--output has no value",
        "--name has no value",
    ]


def test_set_is_unknown_where_there_are_no_inputs() -> None:
    assert [fault.what for fault in read_line(["--set", "x=1"])[1]] == ["unknown option --set"]
