"""Read files with a line for each word: CoNLL, CoNLL-2003 and CoNLL-U."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

from finetune.core.errors import DataError, Fault
from finetune.data.table import Row
from finetune.data.text import open_text

_CONLL_2003 = ("tokens", "pos_tags", "chunk_tags", "ner_tags")
_CONLLU = ("index", "tokens", "lemmas", "upos", "xpos", "features", "head", "relation", "dependencies", "misc")


def word_columns(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the line where a sentence begins and its columns, each a list with an entry for each word.

    Tabs or spaces stand between columns, a blank line after each sentence. The first column is named tokens, the last
    ner_tags; those of CoNLL-2003 and CoNLL-U have their own names.
    """
    universal = ".conllu" in path.name.lower()
    with open_text(path, newline="\n") as file:
        for number, found in _sentences(file, path, _CONLLU if universal else ()):
            # In CoNLL-U 1-2 is the surface of two words, and 1.1 a word that isn't there.
            words = [word for word in found if word[0].isdecimal()] if universal else found
            if words and words[0][0] != "-DOCSTART-":
                names = _CONLLU if universal else _names(len(words[0]))
                columns = zip(*words, strict=True)
                yield number, {name: list(values) for name, values in zip(names, columns, strict=True)}


def _names(count: int) -> tuple[str, ...]:
    if count == len(_CONLL_2003):
        return _CONLL_2003
    return ("tokens", *(f"column_{i}" for i in range(2, count)), "ner_tags")[:count]


def _sentences(file: io.TextIOWrapper, path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield the line where a sentence begins and the columns of each of its words.

    All lines have as many columns: those of `names`, if given, else those of the first. A line that begins with # and
    has not, or any such line if there are `names`, is a comment.
    """
    lines = [(number, line.rstrip()) for number, line in enumerate(file, start=1)]
    width = len(names) or next((len(_split(text)) for _, text in lines if text and not text.startswith("#")), 0)
    begin = 1
    words: list[list[str]] = []
    for number, text in [*lines, (len(lines) + 1, "")]:
        word = _split(text)
        if not text:
            if words:
                yield begin, words
            words = []
        elif text.startswith("#") and (names or len(word) != width):
            continue
        elif len(word) != width:
            why = f"it has {len(word)} columns, {'CoNLL-U' if names else 'the first line'} {width}"
            fix = "write one word and its tags on each line, and a blank line between sentences"
            raise DataError(Fault("wrong number of columns", where=f"{path}, line {number}", why=why, fix=fix))
        else:
            begin = begin if words else number
            words.append(word)


def _split(text: str) -> list[str]:
    return text.split("\t") if "\t" in text else re.split(" +", text.strip(" "))
