"""The languages of texts that share a script."""

from collections import Counter

import pytest

from finetune.tasks.translation import languages
from finetune.tasks.translation.languages import are_swapped, common_words, language_of, other_language
from tests.tasks.translation.samples import ENGLISH, FRENCH, GERMAN


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("en", "en"),
        ("de_DE", "de"),
        ("deu_Latn", "de"),
        ("pt-BR", "pt"),
        ("nb", "no"),
        ("ukr_Cyrl", "uk"),
        ("zh", ""),
        ("", ""),
    ],
)
def test_codes(code: str, language: str) -> None:
    assert language_of(code) == language


def test_a_word_belongs_to_one_language() -> None:
    words = [word for line in languages._COMMON.values() for word in line.split()]
    codes = [code for line in languages._COMMON for code in line.split()]
    assert [word for word, count in Counter(words).items() if count > 1] == []
    assert len(codes) == len(set(codes)) and len(languages._COMMON) == 24
    assert all(len(line.split()) >= 15 and line == line.lower() for line in languages._COMMON.values())


def heard(texts: list[str]) -> Counter[str]:
    return Counter(word for text in texts for word in common_words(text))


def test_the_language_of_many_texts() -> None:
    assert other_language(heard(GERMAN * 5), "en") == "de"
    assert other_language(heard(FRENCH * 5), "en") == "fr"
    assert other_language(heard(GERMAN * 5), "de") == ""
    assert other_language(heard(GERMAN * 5), "") == ""  # nothing is said that could be wrong
    assert other_language(heard([]), "en") == ""


def test_a_language_has_to_be_clear() -> None:
    """Enough words, different ones, and hardly any of the language that is said or of a third one."""
    assert other_language(heard(GERMAN), "en") == ""
    assert other_language(heard(["Los Angeles", "Las Vegas"] * 50), "en") == ""
    assert other_language(heard(GERMAN * 5 + ENGLISH), "en") == ""
    assert other_language(heard(GERMAN * 5 + FRENCH * 5), "en") == ""


@pytest.mark.parametrize(
    ("source", "target", "swapped"),
    [
        ("Der Zug ist nicht voll.", "The train is half empty.", True),
        ("Der Zug ist voll.", "The train is full.", False),  # one word each: too few
        ("The train is not full.", "Der Zug ist nicht voll.", False),
        ("Der Zug ist nicht voll.", "Er ist nicht voll und nicht leer.", False),
        ("Wir sind nicht bei The Wall gewesen.", "They were not at The Wall with you.", False),
        ("Wir sind nicht da.", "They said und with this.", False),
        ("", "", False),
    ],
)
def test_swapped_texts(source: str, target: str, swapped: bool) -> None:
    assert are_swapped(source, target, ("en", "de")) == swapped
