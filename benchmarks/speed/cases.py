"""The cases, by name. Another one is a file and a line here."""

from benchmarks.speed import reading, starting, training, writing
from benchmarks.speed.harness import Case

CASES: dict[str, Case] = {
    case.name: case for case in [*training.CASES, *reading.CASES, *writing.CASES, *starting.CASES]
}
