"""The dataclass of each component is the only text of its parameters.

From it come the parser, the help, the inputs and the command line of the Azure ML component YAML, and the tables of
docs/parameters.md. Standard library only, so that --help and parameter errors are instant.

A class that inherits from several groups keeps the order in which its bases are written; a field declared again in a
subclass keeps its place and changes its type, default or text.
"""

import argparse
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from finetune.core.errors import Fault, ParameterError
from finetune.core.outputs import Output, overlaps
from finetune.core.paths import LOST, is_lost, looks_local, nearest
from finetune.core.types import Json

T = TypeVar("T")
PortKind = Literal["uri_file", "uri_folder", "mltable", "custom_model", "mlflow_model"]
BOOLEAN = ("true", "false")
LOCAL_OR_HUB = ("huggingface_id", "dataset_name")  # names that may be those of local folders
SECRETS = ("huggingface_token_secret",)  # names of addresses of secrets: a value that is none may be the secret itself
SECRET_ADDRESS = re.compile(
    r"https://[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]\.vault\.(azure\.net|azure\.cn|usgovcloudapi\.net)"
    r"/secrets/[A-Za-z0-9-]{1,127}(/[0-9A-Fa-f]{32})?/?"
)
ZERO = "holds a zero character"
LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes, on all common file systems
COMPARED, NAME = 10_000, 100  # known names, and characters of each, among which a slip of the pen is looked for
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def param(default: T, doc: str, *, min: float | None = None, max: float | None = None) -> T:
    """Return a literal input with a default. bool is written "true"/"false" outside; Literal[...] becomes an enum."""
    return field(default=default, kw_only=True, metadata={"doc": doc, "min": min, "max": max})


def required(doc: str) -> Any:
    """Return a literal input that has to be given."""
    return field(kw_only=True, metadata={"doc": doc})


def port(
    kind: PortKind, doc: str, *, output: bool = False, writes: tuple[str, ...] = (), optional: bool = False
) -> Any:
    """Return a file or folder handed in or out by the platform. Optional ports are None where nothing is connected.

    An output names all that may be written there, as core/outputs.py has it.
    """
    metadata = {"doc": doc, "port": kind, "output": output, "writes": writes}
    return field(default=None if optional else MISSING, kw_only=True, metadata=metadata)


@dataclass(frozen=True)
class Param:
    """A parameter: one field of a component's dataclass, in the terms of Azure ML."""

    name: str
    kind: str  # string, integer, number, boolean or a PortKind
    default: object  # None: no default
    required: bool
    output: bool
    enum: tuple[str, ...]
    doc: str
    minimum: float | None
    maximum: float | None
    group: str
    writes: tuple[str, ...] = ()  # the names in an output

    @property
    def is_port(self) -> bool:
        return self.kind in get_args(PortKind)

    @property
    def default_text(self) -> str | None:
        """The default as it is typed on a command line; None where there is none."""
        return None if self.default is None else to_text(self.default)

    def convert(self, text: str) -> str | int | float | bool | Path:
        """Return the value of `text`. Raises: ValueError with the reason."""
        if (self.is_port or self.name in LOCAL_OR_HUB) and (why := no_path(text)):
            raise ValueError(why)
        if "\0" in text:
            raise ValueError(ZERO)
        if self.name in SECRETS and not SECRET_ADDRESS.fullmatch(text):
            raise ValueError(
                "must be https://VAULT.vault.azure.net/secrets/NAME; a token that was given here is to be revoked"
            )
        if self.is_port:
            if not text:
                raise ValueError("must be a path")
            if is_lost(text):
                raise ValueError(LOST)
            return Path(text)
        if self.kind == "boolean":
            return _boolean(text)
        if self.enum and text not in self.enum:
            raise ValueError(f"must be one of {', '.join(self.enum)}{did_you_mean(text, self.enum)}")
        if self.kind in ("integer", "number"):
            return self._number(text)
        return text

    def _number(self, text: str) -> int | float:
        if self.kind == "integer" and not re.fullmatch(r"[+-]?[0-9]+", text):
            raise ValueError("must be an integer")
        try:
            value = int(text) if self.kind == "integer" else float(text)
        except ValueError:
            raise ValueError(
                f"must be {'an integer of a sensible size' if self.kind == 'integer' else 'a number'}"
            ) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be finite")
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"must be at least {self.minimum:g}")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"must be at most {self.maximum:g}")
        return value


def non_default(params: object) -> Json:
    """Return the parameters that are not at their default; folders and files left out."""
    given = vars(params)
    return {p.name: given[p.name] for p in params_of(type(params)) if not p.is_port and given[p.name] != p.default}


def outputs_of(params: object) -> list[Output]:
    """Return the folders that the component writes into."""
    given = vars(params)
    return [
        Output(f"--{p.name}", given[p.name], p.writes)
        for p in params_of(type(params))
        if p.output and given[p.name] is not None
    ]


def missing_of(params: object) -> list[Fault]:
    """Return a fault for each input that is not there, or is a file in place of a folder or the other way round."""
    given = vars(params)
    inputs = [p for p in params_of(type(params)) if not p.output and given[p.name] is not None]
    return [fault for p in inputs if (fault := missing(p, str(given[p.name]), f"--{p.name} "))]


def missing(p: Param, text: str, said: str) -> Fault | None:
    """Return a fault if the value of an input names what isn't on this machine; None if it is, or is a hub's to know.

    `said` is how the parameter is typed, up to its value.
    """
    path = Path(text)
    if not p.is_port and not (p.name in LOCAL_OR_HUB and (path.exists() or looks_local(text))):
        return None
    folder = p.kind != "uri_file"
    if path.is_dir() if folder else path.is_file():
        return None
    kind = "folder" if folder else "file"
    if path.exists():
        what = f"{said}{text} is a {'file' if folder else 'folder'}, not a {kind}"
        return Fault(what, where=str(path.absolute()), fix=f"give the path of a {kind}")
    near = nearest(path)
    parent = next((place for place in path.absolute().parents if place.is_dir()), Path("/"))
    there = path.absolute().parent == parent
    why = (
        f"{parent} has no such {kind}"
        if there
        else f"{parent} has no folder {path.absolute().relative_to(parent).parts[0]}"
    )
    fix = f"{said}{near}" if near else f"give the path of a {kind} that is there"
    return Fault(f"{said}{text} is not there", where=str(path.absolute()), why=why, fix=fix)


def overlaps_of(params: object) -> list[Fault]:
    """Return a fault for each output that is, holds or lies in an input."""
    given = {p.name: p for p in params_of(type(params)) if vars(params)[p.name] is not None}
    inputs = {
        f"--{name}": Path(vars(params)[name])
        for name, p in given.items()
        if not p.output and (p.is_port or (name in LOCAL_OR_HUB and Path(vars(params)[name]).is_dir()))
    }
    return overlaps(inputs, {output.parameter: output.folder for output in outputs_of(params)})


def to_text(value: object) -> str:
    """Return a value as it is typed on a command line and written into a YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_shown(name: str, text: str) -> str:
    """Return a parameter's value as errors show it: what may be a secret is not."""
    return "…" if name in SECRETS and not SECRET_ADDRESS.fullmatch(text) else text


def no_path(text: str) -> str:
    """Return why no file system has such a path; "" where one may."""
    if "\0" in text:
        return ZERO
    parts = text.encode("utf-8", "surrogatepass").split(b"/")
    too_long = sum(map(len, parts)) + len(parts) > LONGEST_PATH or max(map(len, parts)) > LONGEST_NAME
    return "is longer than a path can be" if too_long else ""


def _boolean(text: str) -> bool:
    # The azure-ai-ml SDK writes booleans as 'True'/'False', the designer as 'true'/'false'.
    if text.lower() not in BOOLEAN:
        raise ValueError("must be true or false")
    return text.lower() == "true"


def did_you_mean(name: str, known: Sequence[str], before: str = "") -> str:
    """Return '; did you mean X?' for the nearest known name, or nothing."""
    if len(name) > NAME:
        return ""
    short = [other for other in known[:COMPARED] if len(other) <= NAME]
    near = difflib.get_close_matches(name, short, n=1, cutoff=0.6)
    return f"; did you mean {before}{near[0]}?" if near else ""


def params_of(cls: type) -> tuple[Param, ...]:
    """Return every parameter of a component, in the order of help and YAML."""
    hints = typing.get_type_hints(cls)
    current = {f.name: f for f in fields(cls)}
    seen: dict[str, Param] = {}
    for group in _groups(cls):
        for name in group.__annotations__:
            if name not in seen and name in current:
                seen[name] = _describe(current[name], hints[name], (group.__doc__ or "").splitlines()[0])
    return tuple(seen.values())


def _groups(cls: type) -> Iterator[type]:
    for base in cls.__bases__:
        if base is not object:
            yield from _groups(base)
    yield cls


def _describe(item: "Field[Any]", hint: Any, group: str) -> Param:
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    base = next(a for a in get_args(hint) if a is not type(None)) if optional else hint
    enum = tuple(get_args(base)) if get_origin(base) is Literal else BOOLEAN if base is bool else ()
    return Param(
        name=item.name,
        kind=item.metadata.get("port") or _KINDS.get(base, "string"),
        default=None if item.default is MISSING else item.default,
        required=item.default is MISSING,
        output=item.metadata.get("output", False),
        enum=enum,
        doc=item.metadata["doc"],
        minimum=item.metadata.get("min"),
        maximum=item.metadata.get("max"),
        group=group.rstrip("."),
        writes=item.metadata.get("writes", ()),
    )


def parse(cls: type[T], argv: Sequence[str], prog: str) -> T:
    """Return a `cls` built from `--name value` or `--name=value` words. With --help, print the help and exit.

    Raises: ParameterError, with every fault of the whole command line.
    """
    known = {p.name: p for p in params_of(cls)}
    if _asks_for_help(argv):
        print(help_text(cls, prog))
        raise SystemExit(0)
    words, faults = _split(argv, known)
    values: Json = {}
    for name, text in words.items():
        try:
            values[name] = known[name].convert(text)
        except ValueError as error:
            faults.append(Fault(f"--{name} {as_shown(name, text)!r} {error}", fix=_example(known[name])))
    for p in known.values():
        if p.required and p.name not in words:
            faults.append(Fault(f"--{p.name} is missing", why=p.doc, fix=_example(p)))
    if faults:
        raise ParameterError(*faults)
    return cls(**values)


def _asks_for_help(argv: Sequence[str]) -> bool:
    """Return whether --help or -h stands where a parameter could; after one, -h is its value, as any other."""
    before = ["", *argv]
    return any(
        word == "--help" or (word == "-h" and not (last.startswith("--") and "=" not in last))
        for last, word in zip(before, argv, strict=False)
    )


def _split(argv: Sequence[str], known: dict[str, Param]) -> tuple[dict[str, str], list[Fault]]:
    words: dict[str, str] = {}
    faults: list[Fault] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            faults.append(Fault(f"unexpected word {word!r}", fix="write every parameter as --name value"))
        elif not equals and (not rest or rest[0].startswith("--")):
            known_as = _example(known[name]) if name in known else ""
            faults.append(Fault(f"--{name} has no value{_unknown(name, known)}", fix=known_as))
        else:
            text = text if equals else rest.pop(0)
            if name in words:
                values = " and ".join(repr(as_shown(name, value)) for value in (words[name], text))
                faults.append(Fault(f"--{name} is given twice: {values}"))
            elif name in known:
                words[name] = text
            else:
                faults.append(Fault(f"unknown parameter --{name}{did_you_mean(name, list(known), '--')}"))
    return words, faults


def _unknown(name: str, known: dict[str, Param]) -> str:
    return "" if name in known else f", and is unknown{did_you_mean(name, list(known), '--')}"


def _example(p: Param) -> str:
    value = p.default_text or (p.enum[0] if p.enum else f"<{p.kind}>")
    return f"--{p.name} {value}"


def help_text(cls: type, prog: str) -> str:
    """Return the --help page, one section for each group."""
    parser = argparse.ArgumentParser(prog=prog, usage=f"{prog} --NAME VALUE ...", add_help=False)
    sections: Json = {}
    for p in params_of(cls):
        if p.group not in sections:
            sections[p.group] = parser.add_argument_group(p.group)
        default = "required" if p.required else f"default: {p.default_text}" if p.default is not None else "optional"
        metavar = "{" + ",".join(p.enum) + "}" if p.enum else p.kind.upper()
        text = f"{p.doc} ({default})".replace("%", "%%")
        sections[p.group].add_argument(f"--{p.name}", metavar=metavar, help=text)
    return parser.format_help()
