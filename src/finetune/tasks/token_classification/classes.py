"""Look at the tags of a whole data set: what is no class, what has to be asked, and what is worth a line."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from finetune.core.console import some
from finetune.core.errors import DataError, Fault
from finetune.data.table import FIRST_ROWS_SHOWN, Row
from finetune.params.schema import did_you_mean
from finetune.tasks.token_classification.schemes import OUTSIDE, detect, meant_as_outside

# A class in fewer than RARE of MANY rows or more is named: it may be a slip of the pen.
RARE, MANY = 3, 1000
Splits = Mapping[str, Sequence[Row]]  # rows by the name of their split, which may be ""


def tagged(splits: Splits) -> list[list[str | None]]:
    """Return the tags of all annotated rows."""
    return [row["tags"] for rows in splits.values() for row in rows if row["tags"]]


def refuse_other_outside(splits: Splits) -> None:
    """Raise DataError if another tag stands where the letter O is meant."""
    why = f"all other tags mark entities; words outside of entities have the tag {OUTSIDE}, a capital letter"
    faults = [
        Fault(f"is O meant by the tag {tag!r}?", where=_places(splits, tag), why=why, fix=_written(re.escape(tag)))
        for tag in meant_as_outside(tagged(splits))
    ]
    if faults:
        raise DataError(*faults)


def refuse_no_outside(splits: Splits) -> None:
    """Raise DataError, of tags that mark entities, if words are not annotated and no word is outside of entities.

    Some formats write - or _ for O. Bare letters may mark all words, as those of word segmentation do.
    """
    names = {tag for tags in tagged(splits) for tag in tags}
    if None in names and OUTSIDE not in names and any(len(tag) > 1 for tag in names if tag):
        why = "- and _ mean words that nobody looked at; nothing says which words belong to no entity"
        raise DataError(
            Fault("is O meant by - or _? no word has the tag O", _places(splits, None), why=why, fix=_written("[-_]"))
        )


def _written(pattern: str) -> str:
    command = f"sed -i -E 's/([[:space:]]){pattern}([[:space:]]*)$/\\1{OUTSIDE}\\2/' FILE"
    return f"write {OUTSIDE} for it; in a file with a word on each line: {command}"


def _places(splits: Splits, tag: str | None) -> str:
    """Return the first rows that have the tag, as text."""
    found = [f"{name} row {row['row']}" for name, rows in splits.items() for row in rows if tag in (row["tags"] or ())]
    return ", ".join(place.lstrip() for place in found[:FIRST_ROWS_SHOWN]) + (
        ", …" if len(found) > FIRST_ROWS_SHOWN else ""
    )


def described(splits: Splits, labels: Sequence[str]) -> list[str]:
    """Return lines on the classes `labels` and the scheme that were found, and warnings."""
    lines = [f"classes: {len(labels)} ({some(labels)})"]
    found = detect(tagged(splits))
    if found.name:
        rows = f"; {found.broken} distinct rows don't follow it to the letter" if found.broken else ""
        lines.append(f"scheme: {found.name}, found in the tags{rows}")
        lines += left_out(splits, found.strangers, found.name, labels)
    else:
        why = f"; {some(found.strangers)} mark none" if found.strangers else ""
        lines.append(f"scheme: none, the tags mark no entities{why}; scored by accuracy and macro F1")
        lines += _spelt_otherwise(splits, labels)
    return [*lines, *_rare(splits, labels), *_unseen(splits, labels)]


def _spelt_otherwise(splits: Splits, labels: Sequence[str]) -> list[str]:
    """Return a line if the tags would mark entities but for their spelling: b-per, B_PER, B:PER."""
    found = detect([tag and _respelt(tag) for tag in tags] for tags in tagged(splits))
    example = next((label for label in labels if len(label) > 1 and _respelt(label) != label), "")
    if not (found.name and example):
        return []
    return [f"warning: written like {_respelt(example)}, not {example}, the tags would mark entities, by {found.name}"]


def _respelt(tag: str) -> str:
    letter = re.fullmatch(r"([A-Za-z])[-_:/.](.+)", tag, re.DOTALL)
    return f"{letter[1].upper()}-{letter[2]}" if letter else tag.upper() if len(tag) == 1 else tag


def left_out(splits: Splits, strangers: Sequence[str], scheme: str, labels: Sequence[str]) -> list[str]:
    """Return a line for each tag that means nothing in the scheme, if any word has it."""
    words = Counter(tag for tags in tagged(splits) for tag in tags)
    return [
        f"warning: {tag} means nothing in {scheme}{did_you_mean(tag, labels) or ';'} left out of loss and metrics: "
        f"{words[tag]} words, in {_places(splits, tag)}"
        for tag in strangers
        if words[tag]
    ]


def _rare(splits: Splits, labels: Sequence[str]) -> list[str]:
    total = sum(map(len, splits.values()))
    if total < MANY:
        return []
    rows = Counter(tag for tags in tagged(splits) for tag in set(tags))
    return [
        f"warning: the class {tag} stands in {rows[tag]} of {total:,} rows: {_places(splits, tag)}"
        for tag in labels
        if rows[tag] < RARE
    ]


def _unseen(splits: Splits, labels: Sequence[str]) -> list[str]:
    seen = {
        name: {tag for row in rows for tag in row["tags"] or ()}.intersection(labels) for name, rows in splits.items()
    }
    return [
        f"warning: {name} has tags that train lacks, kept as classes: {some(sorted(found - seen['train']))}"
        for name, found in seen.items()
        if found - seen["train"]
    ]
