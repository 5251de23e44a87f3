"""Put values into a shell command, each quoted for the place where its ${{ }} stands.

A value reaches the process as its own characters and is never read as shell code. Where that isn't certain, the
reference is refused: in comments, here-documents, `…`, ${…}, $((…)) and what eval or sh -c read. What a command does
with its words afterwards is its own affair.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from finetune.core.errors import Fault, ParameterError

Place = Literal["unquoted", "'", '"', "refused"]
REFUSED = "stands where no value can be quoted: in a comment, a here-document, `…`, ${…}, $((…)), or code for a shell"
FIX = "set it apart as a word of its own: '${{…}}'"


class Reference(NamedTuple):
    """A ${{ }} in a command."""

    name: str
    start: int
    end: int
    place: Place


_REFERENCE = re.compile(r"(?P<reference>\$\{\{[^{}]*\}\})")
# Behind these nothing is certain. A $ or \ before a reference would change the meaning of the quote that is put there.
_UNCLEAR = r"`|\$[{\[]|\$\(\(|[$\\](?=\$\{\{)|\\\Z"
_UNQUOTED = re.compile(
    rf"""{_REFERENCE.pattern}
    | (?P<comment>(?:^|(?<=[ \t\n;&|(]))\#[^\n]*)
    | (?P<skip>\$\{{\w+\}} | <<< | \\(?!\$\{{\{{)[\s\S](?!\#))
    | (?P<unclear>{_UNCLEAR} | \(\( | << | \$['"] | \\[\s\S](?=\#) | (?:(?<=[<>)])|(?<=[^\S \t\n]))\#)
    | (?P<code>(?<![\w.-])(?:\w*sh\s+(?:[-+][\w-]+\s+(?:\w+\s+)?){{0,9}}?-\w*c(?:\s+[-+](?:o\s+\w+|[\w-]+)){{0,9}}
        | python[\d.]*\s+(?:-[a-ln-zA-Z]+\s+){{0,9}}?-[a-ln-zA-Z]*c | (?:perl|ruby|node)\s+-e)\s+)
    | (?P<again>(?<![\w./-])(?:eval|let|trap)(?![\w./-]))
    | (?P<case>(?<![\w./-])case(?![\w./-]))
    | (?P<open>\$?\() | (?P<close>\)) | (?P<quote>['"]) | (?P<end>[;&|\n]) | (?P<space>[ \t])""",
    re.X,
)
_SINGLE = re.compile(rf"{_REFERENCE.pattern}|(?P<quote>')")
_DOUBLE = re.compile(
    rf"{_REFERENCE.pattern}|(?P<skip>\$\{{\w+\}}|\\(?!\$\{{\{{)[\s\S])|(?P<unclear>{_UNCLEAR})"
    r"|(?P<open>\$\()|(?P<quote>\")"
)
_PATTERNS = {"'": _SINGLE, '"': _DOUBLE}  # what is open -> what matters in it
# Besides quotes and parentheses, "code" is open in a word that is a program, "again" in words that a shell reads anew.
_CLOSED_BY = {"end": ("again", "code"), "space": ("code",)}
_BEGINS_COMMAND = re.compile(r"(?:\A|[;&|({!\n]|\b(?:then|do|else|time|command|builtin|exec))[ \t]*\Z")
_NEAR = 40  # characters in which the beginning of a command is looked for
_BARE = re.compile(r"[\w./:,@%+-]+", re.A)  # what may go without quotes
_READ_IN = {"'": "'", '"': '"$`\\'}  # what a shell reads as more than itself in these quotes


def references(command: str) -> Iterator[Reference]:
    """Yield every reference and where it stands. `command` has no $[[ ]] any more."""
    opened: list[str] = []
    at = 0
    while found := _PATTERNS.get(opened[-1] if opened else "", _UNQUOTED).search(command, at):
        kind, text, at = str(found.lastgroup), found[0], found.end()
        if kind == "reference":
            yield _reference(found, _place(opened))
        elif kind == "comment":
            yield from _refused(command, found.start(), at)
        elif kind == "unclear" or (kind == "case" and "$(" in opened):  # its patterns end with a ) alone
            yield from _refused(command, found.start(), len(command))
            return
        elif kind == "quote" and opened and opened[-1] == text:
            opened.pop()
        elif kind in ("open", "quote"):
            opened.append(text)
        elif kind == "code" or (kind == "again" and _BEGINS_COMMAND.search(command[: found.start()][-_NEAR:])):
            opened.append(kind)
        elif kind == "close":
            _close_parenthesis(opened)
        elif opened and opened[-1] in _CLOSED_BY.get(kind, ()):
            opened.pop()


def _place(opened: list[str]) -> Place:
    if "code" in opened or "again" in opened:
        return "refused"
    last = opened[-1] if opened else ""
    return "'" if last == "'" else '"' if last == '"' else "unquoted"


def _reference(found: re.Match[str], place: Place) -> Reference:
    return Reference(found[0][3:-2].strip(), found.start(), found.end(), place)


def _refused(command: str, start: int, end: int) -> Iterator[Reference]:
    for found in _REFERENCE.finditer(command, start, end):
        yield _reference(found, "refused")


def _close_parenthesis(opened: list[str]) -> None:
    while opened and opened[-1] in ("code", "again"):
        opened.pop()
    if opened and opened[-1] in ("(", "$("):
        opened.pop()


def filled(command: str, values: Mapping[str, str]) -> str:
    """Return the command with its values. Raises: ParameterError with every value that can't be put in."""
    parts: list[str] = []
    faults: list[Fault] = []
    last = 0
    for name, start, end, place in references(command):
        if place == "refused":
            faults.append(Fault(f"${{{{{name}}}}} {REFUSED}", fix=FIX))
        if "\0" in values[name]:
            faults.append(Fault(f"{name} holds the character NUL", why="no process can be given it"))
        alone = re.search(r"(?:\A|(?<!\\)\s)\Z", command[max(0, start - 2) : start]) is not None
        parts += [command[last:start], quoted(values[name], place, alone)]
        last = end
    if faults:
        raise ParameterError(*faults)
    return "".join([*parts, command[last:]])


def quoted(value: str, place: Place, alone: bool) -> str:
    """Return what stands for the value at the place; `alone` is whether a word begins there, and not in its middle."""
    inside = value.replace("'", "'\"'\"'")
    if place == "'":
        return inside
    if place == '"':
        return f"\"'{inside}'\""
    # Behind $HOME or ~ a bare word would be of its name, and with a = it may be an assignment.
    return value if alone and _BARE.fullmatch(value) else f"'{inside}'"


def read_otherwise(value: str, place: Place) -> str:
    """Return the characters that would not be themselves at the place if the value stood there as it is; '' if none.

    Azure ML puts values in so. Only quotes show that a value is meant to stay one word.
    """
    return "".join(sign for sign in _READ_IN.get(place, "") if sign in value)
