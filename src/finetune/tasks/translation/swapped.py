"""Notice columns, and single rows, whose source and target are swapped: by their scripts or by their languages."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence

from finetune.data.table import Audit, Row
from finetune.tasks.translation.languages import are_swapped, common_words, language_of, other_language
from finetune.tasks.translation.scripts import main_script, script_of

SAMPLE = 2_000  # rows at most, from all over the file, whose words are counted
Pair = tuple[str, str]  # of the source and of the target


def note_swapped(rows: Sequence[Row], audit: Audit, languages: Pair, columns: Pair) -> None:
    """Note where the columns seem to be swapped, or one to be in another language than is said; and count the rows
    that are the other way round than the columns are.

    The rows are read once, and once more where single ones may be swapped. A language that isn't given is "".
    """
    scripts, words = _survey(rows)
    known = language_of(languages[0]), language_of(languages[1])
    heard = other_language(words[0], known[0]), other_language(words[1], known[1])
    usual = max((pair for pair in scripts if all(pair)), key=scripts.__getitem__, default=("", ""))
    letters = usual if usual[0] != usual[1] else ("", "")
    _note_columns(audit, languages, columns, letters, heard)
    spoken = heard[0] or known[0], heard[1] or known[1]
    if all(letters) and letters[::-1] in scripts:
        _count(audit, letters, (row["row"] for row in rows if _scripts(row) == letters[::-1]))
    if not all(letters) and all(spoken) and spoken[0] != spoken[1]:
        _count(audit, spoken, (row["row"] for row in rows if are_swapped(row["source"], row["target"] or "", spoken)))


def _survey(rows: Sequence[Row]) -> tuple[Counter[Pair], tuple[Counter[str], Counter[str]]]:
    """Return how many rows are in each two scripts, and the common words of sources and of targets in a sample."""
    scripts, sources, targets = Counter[Pair](), Counter[str](), Counter[str]()
    step = -(-len(rows) // SAMPLE)
    for i, row in enumerate(rows):
        scripts[_scripts(row)] += 1
        if i % step == 0:
            sources.update(common_words(row["source"]))
            targets.update(common_words(row["target"] or ""))
    return scripts, (sources, targets)


def _note_columns(audit: Audit, languages: Pair, columns: Pair, letters: Pair, heard: Pair) -> None:
    (source, target), names = languages, ("source_lang", "target_lang")
    expected = script_of(source), script_of(target)
    reason = ""
    if any(one and one == other for one, other in zip(expected, reversed(letters), strict=True)):
        reason = f"source_lang {source} is in {letters[0]}, target_lang {target} in {letters[1]} letters"
    elif all(heard) and heard == (language_of(target), language_of(source)):
        reason = f"source_lang {source} reads like {heard[0]}, target_lang {target} like {heard[1]}"
    if reason:
        fix = f"--source_key {shlex.quote(columns[1])} --target_key {shlex.quote(columns[0])}"
        audit.notes.append(
            f"warning: the columns seem to be swapped: the text of {reason}; to translate from {source}, {fix}"
        )
        return
    for name, language, found in zip(names, languages, heard, strict=True):
        if found:
            audit.notes.append(f"warning: the text of {name} {language} reads like {found}")


def _count(audit: Audit, usual: Pair, swapped: Iterable[int]) -> None:
    for number in swapped:
        audit.add("kept", f"source and target seem to be swapped: {usual[1]} to {usual[0]}", number)


def _scripts(row: Row) -> Pair:
    return main_script(row["source"]), main_script(row["target"] or "")
