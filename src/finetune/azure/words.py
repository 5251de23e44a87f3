"""The words of the commands that are no component: options, flags, and --set with the inputs of a pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.core.errors import Fault
from finetune.params.schema import did_you_mean


@dataclass(frozen=True)
class Line:
    """A command line, taken apart."""

    words: tuple[str, ...]  # those of no option
    options: dict[str, str]  # --output -> its value
    flags: frozenset[str]
    values: dict[str, str]  # of --set


def read_line(
    argv: Sequence[str], options: Sequence[str] = (), flags: Sequence[str] = (), values: bool = False
) -> tuple[Line, list[Fault]]:
    """Return the command line taken apart, and its faults. With `values`, --set is one of its options."""
    faults: list[Fault] = []
    words: list[str] = []
    given: dict[str, str] = {}
    inputs: dict[str, str] = {}
    known = (*(("--set",) if values else ()), *options, *flags)
    rest, setting = list(argv), False
    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        if word in known and word not in options:
            setting = word == "--set"
        elif name in options:
            setting = False
            if equals or (rest and not rest[0].startswith("--")):
                given[name] = text if equals else rest.pop(0)
            else:
                faults.append(Fault(f"{name} has no value", fix=f"{name} VALUE"))
        elif word.startswith("--"):
            faults.append(Fault(f"unknown option {word}{did_you_mean(name, known)}"))
        elif not setting:
            words.append(word)
        elif equals:
            inputs[name] = text
        else:
            faults.append(Fault(f"unexpected word {word!r}", fix="--set NAME=VALUE"))
    return Line(tuple(words), given, frozenset(word for word in argv if word in flags), inputs), faults
