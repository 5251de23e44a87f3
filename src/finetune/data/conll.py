"""Read files with a line for each word: CoNLL, CoNLL-2003, CoNLL-U, GermEval and their kin."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.core.console import some
from finetune.core.errors import DataError, Fault
from finetune.data.table import Row
from finetune.data.text import open_text

_CONLL_2003 = ("tokens", "pos_tags", "chunk_tags", "ner_tags")
_CONLLU = ("index", "tokens", "lemmas", "upos", "xpos", "features", "head", "relation", "dependencies", "misc")
_LINE_END = re.compile("\r\n|\n|\r|\x85")
_MARKER = re.compile(r"(?:\d+[\t ]+)?-DOC(?:START|END)-(?![\w-])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?…。！？]+")
_INDEX = re.compile(r"\d+(?:[-.]\d+)?")  # in CoNLL-U 1-2 is the surface of two words, and 1.1 a word that isn't there
ENTITY_TAG = re.compile(r"O|[BIESLUMW]-\S.*", re.DOTALL)
_WORD_HEADERS = {"word", "words", "token", "tokens", "form", "text"}
_TAG_HEADERS = {"tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "pos", "pos_tag", "upos", "entity"}
_NOTHING = {"", "_", "-"}  # what stands in a column for no value
_DIGITS = 18  # of a number that counts something
_SHOWN = 5  # faulty lines


class _Line(NamedTuple):
    """A line of a word: its number in the file, its columns, and whether the line before it is of a word too."""

    number: int
    fields: list[str]
    follows: bool


def word_columns(path: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
    """Yield the line where a sentence begins and its columns, each a list with an entry for each word.

    Tabs or white space stand between columns, as the whole file has it, and blank lines between sentences. Lines of
    -DOCSTART- and comments are left out. What a column is, `_named` says; `notes` gets the readings that were taken.
    """
    with open_text(path) as file:
        text = file.read()
    lines = list(enumerate(_LINE_END.split(text), start=1))
    tabs = _has_tabs(lines)
    split: Callable[[str], list[str]] = _at_tabs if tabs else _at_spaces
    words, markers = _words(lines, split)
    universal = ".conllu" in path.name.lower() or _is_conllu(words)
    words = _without_comments(words, universal, notes)
    words = _without_header(words, notes)
    width = len(_CONLLU) if universal else _width(words)
    cut_off = bool(words) and words[-1].number == len(lines)  # the last line has no end
    _refuse_widths(words, width, f"{path}", "CoNLL-U has" if universal else "most lines have", cut_off)
    if not universal and width > 1 and all(word.fields[-1] == "" for word in words):
        words = [word._replace(fields=word.fields[:-1]) for word in words]  # each line ends in a tab
    sentences = _sentences(words, {number for number, line in lines if not line.strip()}, markers)
    if markers:
        notes.append(f"{len(markers)} lines of document markers (-DOCSTART-) are left out")
    if universal:
        sentences = [[word for word in sentence if word.fields[0].isdecimal()] for sentence in sentences]
        names: Sequence[str] = _CONLLU
    else:
        names = _named(sentences, notes)
    for sentence in sentences:
        if sentence:
            columns = zip(*(word.fields for word in sentence), strict=True)
            yield sentence[0].number, {name: list(values) for name, values in zip(names, columns, strict=True) if name}


def _has_tabs(lines: Sequence[tuple[int, str]]) -> bool:
    """Return whether most lines have a tab, so that spaces belong to words."""
    of_words = [line for _, line in lines if line.strip() and not line.startswith("#") and not _MARKER.match(line)]
    return 2 * sum("\t" in line for line in of_words) > len(of_words)


def _at_tabs(line: str) -> list[str]:
    return [field.strip(" ") for field in line.split("\t")]


def _at_spaces(line: str) -> list[str]:
    return re.split("[ \t]+", line.strip(" \t"))


def _words(lines: Sequence[tuple[int, str]], split: Callable[[str], list[str]]) -> tuple[list[_Line], set[int]]:
    """Return the lines that are neither blank nor document markers, and the numbers of those markers."""
    words, markers, follows = [], set(), False
    for number, line in lines:
        if _MARKER.match(line):
            markers.add(number)
            follows = False
        elif not line.strip():
            follows = False
        else:
            words.append(_Line(number, split(line), follows))
            follows = not line.startswith("#")
    return words, markers


def _is_conllu(words: Sequence[_Line]) -> bool:
    of_words = [word for word in words if not word.fields[0].startswith("#")]
    return bool(of_words) and all(
        len(word.fields) == len(_CONLLU) and _INDEX.fullmatch(word.fields[0]) for word in of_words
    )


def _without_comments(words: list[_Line], universal: bool, notes: list[str]) -> list[_Line]:
    """Return the lines of words. One that begins with # is a comment if it has another number of columns.

    With the same number it is one if it begins a sentence and no other line has its tag, which marks no entity.
    """
    hashed = [word for word in words if word.fields[0].startswith("#")]
    if not hashed:
        return words
    width = _width([word for word in words if not word.fields[0].startswith("#")] or words)
    tags = {word.fields[-1] for word in words if word.follows or not word.fields[0].startswith("#")}
    comments = {
        word.number
        for word in hashed
        if universal
        or len(word.fields) != width
        or (width > 1 and word.fields[-1] not in tags and not ENTITY_TAG.fullmatch(word.fields[-1]))
    }
    if looked_like_words := [w for w in hashed if w.number in comments and len(w.fields) == width and not universal]:
        shown = " ".join(looked_like_words[0].fields)[:40]
        why = "no other line has their tags"
        notes.append(f"{len(looked_like_words)} lines such as {shown!r} are read as comments: {why}")
    return [word for word in words if word.number not in comments]


def _without_header(words: list[_Line], notes: list[str]) -> list[_Line]:
    """Return the lines without a first one that names columns."""
    if (
        words
        and {field.lower() for field in words[0].fields} & _WORD_HEADERS
        and (words[0].fields[-1].lower() in _TAG_HEADERS)
    ):
        notes.append(f"line {words[0].number} is left out: it names the columns ({', '.join(words[0].fields)})")
        return words[1:]
    return words


def _width(words: Sequence[_Line]) -> int:
    """Return the number of columns that most lines have."""
    counts = Counter(len(word.fields) for word in words)
    return counts.most_common(1)[0][0] if counts else 0


def _refuse_widths(words: Sequence[_Line], width: int, name: str, others: str, cut_off: bool) -> None:
    """Raise DataError with the lines that have another number of columns."""
    wrong = [word for word in words if len(word.fields) != width]
    fix = "write one word and its tags on each line, a blank line between sentences, and # before comments"
    faults = []
    for word in wrong[:_SHOWN]:
        why = f"it has {len(word.fields)} columns, {others} {width}"
        if cut_off and word is words[-1]:
            why += "; the file was cut off here: its last line has no end"
        where = f"{name}, line {word.number}: {' '.join(word.fields)[:60]!r}"
        faults.append(Fault("wrong number of columns", where=where, why=why, fix=fix))
    if len(wrong) > _SHOWN:
        faults.append(Fault(f"wrong number of columns in {len(wrong) - _SHOWN} more lines", where=name, fix=fix))
    if faults:
        raise DataError(*faults)


def _sentences(words: Sequence[_Line], blank: set[int], markers: set[int]) -> list[list[_Line]]:
    """Return the lines of each sentence: between them stands a blank line, or a document marker.

    A marker that stands between words ends a sentence only after a full stop, or where the file has no blank lines.
    """
    sentences: list[list[_Line]] = []
    separated = any(number for number in blank if words and words[0].number < number < words[-1].number)
    last = -1
    for word in words:
        between = range(last + 1, word.number)
        ended = not sentences or any(number in blank for number in between)
        if not ended and any(number in markers for number in between):
            ended = not separated or any(
                _SENTENCE_END.fullmatch(field) for w in sentences[-1][-2:] for field in w.fields
            )
        if ended:
            sentences.append([])
        sentences[-1].append(word)
        last = word.number
    return sentences


def _named(sentences: Sequence[Sequence[_Line]], notes: list[str]) -> list[str]:
    """Return the names of the columns; "" for running numbers, which are no words.

    The first column of words is tokens. Of several columns of tags ner_tags is the last that marks entities; but where
    its types are all among those of a column before it, both are levels of one annotation, of which the first is taken.
    Four columns have the names of CoNLL-2003. The others are named by their place.
    """
    if not sentences:
        return []
    width = len(sentences[0][0].fields)
    index = int(width > 2 and _is_running(sentences))
    columns = list(zip(*(word.fields for sentence in sentences for word in sentence), strict=True))
    if index:
        notes.append("the first column is left out: it numbers the words")
    if width - index == 1:
        return [""] * index + ["tokens"]
    tagged = {i: types for i in range(index, width) if (types := _types(columns[i]))}
    if width - index == 2 and list(tagged) == [index]:
        notes.append("the tags stand before the words")
        return [""] * index + ["ner_tags", "tokens"]
    tagged.pop(index, None)
    valued = [i for i in range(index + 1, width) if not set(columns[i]) <= _NOTHING]
    chosen = max(tagged or valued or [width - 1])
    chosen = next((i for i in tagged if tagged[i] >= tagged[chosen]), chosen)
    names = ["" if i < index else f"column_{i + 1}" for i in range(width)]
    names[index] = "tokens"
    if width - index == len(_CONLL_2003) and chosen == width - 1:
        names[index:] = _CONLL_2003
    names[chosen] = "ner_tags"
    if others := [name for name in names if name not in ("", "tokens", "ner_tags")]:
        holds = some(sorted(set(columns[chosen])))
        notes.append(f"ner_tags is column {chosen + 1} ({holds}); --tag_key takes another: {', '.join(others)}")
    return names


def _is_running(sentences: Sequence[Sequence[_Line]]) -> bool:
    """Return whether the first column numbers the words of each sentence or of the file, or the sentences."""
    first = [word.fields[0] for sentence in sentences for word in sentence]
    if not all(field.isdecimal() and len(field) <= _DIGITS for field in first):
        return False
    numbers = [[int(word.fields[0]) for word in sentence] for sentence in sentences]
    by_word = all(of == list(range(of[0], of[0] + len(of))) for of in numbers)
    by_sentence = all(len(set(of)) == 1 for of in numbers) and len({of[0] for of in numbers}) == len(numbers)
    return (by_word and (len({of[0] for of in numbers}) == 1 or numbers == sorted(numbers))) or by_sentence


def _types(column: Sequence[str]) -> set[str]:
    """Return the types of the entities that a column marks; empty where a tenth of its values or more mark none."""
    marking = [tag for tag in column if tag != "O" and tag not in _NOTHING]
    types = [tag[2:] for tag in marking if ENTITY_TAG.fullmatch(tag)]
    return set(types) if 10 * len(types) > 9 * len(marking) else set()
