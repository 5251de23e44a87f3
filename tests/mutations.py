"""Break values, texts and files at random, by a seed: what users and other programs make of JSON, YAML and folders."""

import copy
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.core.errors import FinetuneError

LONG = 60.0  # seconds of a fuzzer in the thorough tier
SLOWEST = 20.0  # seconds of one case, on a machine that is busy
# In place of any value.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, -(2**63), 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, "", " ", "a", "0",
    "-1", "null", "\0", "\ud800", "\u2028", "../..", "/", "/dev/null", "x" * 5000, "9" * 5000, "${{",
    "${{parent.inputs.", "$[[ $[[", [], [[]], [None], {}, {"": None}, {"a": {"b": []}}, [0] * 1000,
]  # fmt: skip
# In the middle of any text.
PIECES = [
    "{", "}", "[", "]", ",", ":", '"', "'", "\\", "\n", "\t", "\r", "\0", "- ", "? ", "&a ", "*a", "<<: ", "---\n",
    "...", "#", "!!int ", "!!python/none ", "!!timestamp ", "2024-99-99", "NaN", "-Infinity", "1e999", "9" * 5000,
    "[" * 3000, "null", "true", "\ufeff", "\ud800", "\x85", "| \n", "> ", "%YAML 9.9\n", "${{", "}}", "$[[",
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list in a value, with each of its keys or indices."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def broken_value(value: Any, chance: random.Random) -> Any:
    """A copy in which one to three parts are another value, missing, there twice, or under another name."""
    value = copy.deepcopy(value)
    for _ in range(chance.randrange(1, 4)):
        found = list(places(value))
        if not found:
            return copy.deepcopy(chance.choice(VALUES))
        inside, key = chance.choice(found)
        match chance.randrange(6):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[chance.choice(["", "extra", "\0", str(key).upper()])] = inside.pop(key)
            case 1 | 2 if isinstance(inside, list):
                inside.insert(chance.randrange(len(inside) + 1), copy.deepcopy(inside[key]))
            case 3:
                other, at = chance.choice(found)
                if at in other if isinstance(other, dict) else at < len(other):
                    inside[key] = copy.deepcopy(other[at])
            case _:
                inside[key] = copy.deepcopy(chance.choice(VALUES))
    return value


def broken_text(text: str, chance: random.Random) -> bytes:
    """The bytes of the text with one to three pieces put in, taken out, repeated, or in another encoding."""
    for _ in range(chance.randrange(1, 4)):
        at, to = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        match chance.randrange(6):
            case 0:
                text = text[:at]
            case 1:
                text = text[:at] + text[min(to, at + 30) :]
            case 2:
                text = text[:to] + text[at : at + 300] + text[to:]
            case _:
                text = text[:at] + chance.choice(PIECES) + text[at:]
    encoding = chance.choice([*["utf-8"] * 9, "utf-16", "cp1252"])
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def break_json(path: Path, chance: random.Random) -> None:
    """Break a JSON file, or one line of a file of JSON lines."""
    text = path.read_text(encoding="utf-8")
    if chance.random() < 0.3:
        path.write_bytes(broken_text(text, chance))
        return
    if path.suffix == ".jsonl":
        lines = text.splitlines()
        i = chance.randrange(len(lines))
        lines[i] = json.dumps(broken_value(json.loads(lines[i]), chance))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        path.write_text(json.dumps(broken_value(json.loads(text), chance)), encoding="utf-8")


def break_place(path: Path, chance: random.Random) -> None:
    """Put a folder, a link in a circle, a pipe, nothing, an empty or a binary file in place of a file."""
    path.unlink()
    match chance.randrange(6):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to(path.name)
        case 2:
            os.mkfifo(path)
        case 3:
            path.write_bytes(b"")
        case 4:
            path.write_bytes(chance.randbytes(200))


class Late(BaseException):
    """A case takes too long; no code of ours catches it."""


def fuzz(case: Callable[[random.Random], None], seed: int, cases: int, seconds: float) -> None:
    """Run the case again and again: each ends well or in an error of ours, and in time; both happen."""

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    started, refused, number = time.monotonic(), 0, 0
    try:
        while number < cases and time.monotonic() - started < seconds:
            signal.setitimer(signal.ITIMER_REAL, SLOWEST)
            try:
                case(random.Random(f"{seed} {number}"))
            except FinetuneError as error:
                refused += 1
                assert len(str(error)) < 100_000, (seed, number)
            except (Exception, Late) as error:
                raise AssertionError(f"seed {seed}, case {number}: {type(error).__name__}: {error}") from error
            number += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert number // 20 < refused < number, (refused, number)


def renewed(source: Path, target: Path) -> Path:
    """A fresh copy of a folder in place of what is there."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


MINUTE = pytest.param(10**9, LONG, marks=pytest.mark.thorough)
TIERS = pytest.mark.parametrize(("cases", "seconds"), [(200, math.inf), MINUTE], ids=["some", "minute"])
