"""The metrics of translation against the sacrebleu command and a BLEU written by hand."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.tasks.translation import metrics
from finetune.tasks.translation.scripts import main_script
from tests.writers import pairs

GOLD = [pair["tav"] for pair in pairs("test")]
PREDICTED = [
    " ".join(word if i % 4 else "bar" for i, word in enumerate(text.split(), start)) for start, text in enumerate(GOLD)
]


def by_command(tmp_path: Path, predicted: list[str], gold: list[str], *words: str) -> dict[str, float]:
    """What the sacrebleu command says, by metric."""
    for name, lines in (("predicted", predicted), ("gold", gold)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "gold"), "-i", str(tmp_path / "predicted")]
    done = subprocess.run(
        [*command, "-m", "bleu", "chrf", "ter", "--width", "9", *words], capture_output=True, text=True, check=True
    )
    return {item["name"].lower().replace("chrf2", "chrf"): item["score"] for item in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("language", "words", "predicted", "gold"),
    [
        ("tav", (), PREDICTED, GOLD),
        ("zh", ("-tok", "zh"), ["我喜欢猫。", "他来了", ""], ["我喜欢狗。", "他明天来", "是"]),
        ("ja_XX", ("-tok", "char"), ["猫が好きです", "はい"], ["犬が好きです", "はい"]),
    ],
)
def test_equal_to_the_command(
    tmp_path: Path, language: str, words: tuple[str, ...], predicted: list[str], gold: list[str]
) -> None:
    found = metrics.corpus(predicted, gold, language) | metrics.edits(predicted, gold)
    assert found == pytest.approx(by_command(tmp_path, predicted, gold, *words), abs=1e-6)


def test_signatures_name_the_tokenizer() -> None:
    found = metrics.signatures("zho_Hans")
    assert "tok:zh" in found["bleu"] and found.keys() == {"bleu", "chrf", "ter"}


def nist_bleu(predicted: list[str], gold: list[str], order: int) -> float:
    """BLEU of Papineni et al. 2002 over texts that are split already, by hand."""
    right, total = Counter[int](), Counter[int]()
    for one, other in zip(predicted, gold, strict=True):
        for n in range(1, order + 1):
            ours, theirs = (
                Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
                for words in (one.split(), other.split())
            )
            right[n] += sum((ours & theirs).values())
            total[n] += sum(ours.values())
    if not all(right[n] for n in range(1, order + 1)):
        return 0.0
    lengths = [sum(len(text.split()) for text in texts) for texts in (predicted, gold)]
    brevity = 1.0 if lengths[0] > lengths[1] else math.exp(1 - lengths[1] / max(1, lengths[0]))
    return brevity * math.exp(sum(math.log(right[n] / total[n]) for n in range(1, order + 1)) / order)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=9).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_published_names_are_plain_bleu(texts: list[tuple[str, str]]) -> None:
    predicted, gold = [one for one, _ in texts], [other for _, other in texts]
    found = metrics.published(predicted, gold, "en")
    assert found == pytest.approx({f"bleu_{n}": nist_bleu(predicted, gold, n) for n in (1, 2, 3, 4)}, abs=1e-9)


@pytest.mark.parametrize(
    ("predicted", "source", "gold", "wrong"),
    [
        ("", "A dog.", "Baro.", ["empty"]),
        ("A dog.", "A dog.", "Baro.", ["copied"]),
        ("Berlin", "Berlin", "Berlin", []),  # a name is its own translation
        ("Собака.", "A dog.", "Baro.", ["wrong_script"]),
        ("1843", "1843.", "1843 год", []),  # digits have no script
        ("the red dog the red dog the red dog", "x", "y", ["repeated"]),
        ("the dog and the cat", "x", "y", []),
    ],
)
def test_off_target(predicted: str, source: str, gold: str, wrong: list[str]) -> None:
    assert list(metrics.off_target(predicted, source, gold)) == wrong


@pytest.mark.parametrize(
    ("text", "script"),
    [("Ada lived.", "LATIN"), ("Ада жила", "CYRILLIC"), ("猫が好きです", "CJK"), ("किताब", "DEVANAGARI"), ("12 !", "")],
)
def test_main_script(text: str, script: str) -> None:
    assert main_script(text) == script
