"""Turn parameters into the inputs, the outputs and the command of a component YAML, and back."""

from datetime import date
from typing import Required, TypedDict

from finetune.core.types import Json
from finetune.params.schema import BOOLEAN, Param, params_of, to_text

Scalar = str | bool | int | float | date | None


class Entry(TypedDict, total=False):
    """An entry of `inputs:` or `outputs:` of a component YAML."""

    type: Required[str]
    description: str
    optional: bool
    default: Scalar
    enum: list[Scalar]
    min: float
    max: float


def yaml_inputs(cls: type) -> dict[str, Json]:
    """Return the `inputs:` block of the component YAML."""
    return {p.name: yaml_input(p) for p in params_of(cls) if not p.output}


def yaml_input(p: Param) -> Json:
    """Return one entry of an `inputs:` block. Booleans are string enums, as in the published components."""
    entry: Json = {"type": "string" if p.kind == "boolean" else p.kind, "description": p.doc}
    if p.is_port:
        entry["mode"] = "ro_mount"
    if not p.required:
        entry["optional"] = True
    if p.default is not None:
        entry["default"] = p.default if p.kind in ("integer", "number") else to_text(p.default)
    if p.enum:
        entry["enum"] = list(p.enum)
    if p.minimum is not None:
        entry["min"] = p.minimum
    if p.maximum is not None:
        entry["max"] = p.maximum
    return entry


def from_yaml(name: str, entry: Json) -> Param:
    """Return the parameter that an entry of a component YAML's `inputs:` or `outputs:` declares."""
    enum = tuple(str(value) for value in entry.get("enum", ()))
    kind = "boolean" if set(enum) == set(BOOLEAN) else entry["type"]
    required = not entry.get("optional", False) and "default" not in entry
    doc, least, most = entry.get("description", ""), entry.get("min"), entry.get("max")
    return Param(name, kind, entry.get("default"), required, False, enum, doc, least, most, group="")


def yaml_outputs(cls: type) -> dict[str, Json]:
    """Return the `outputs:` block of the component YAML.

    Outputs are mounted: what is written there outlives the machine at once, not only a run that came to its end.
    """
    return {p.name: {"type": p.kind, "description": p.doc, "mode": "rw_mount"} for p in params_of(cls) if p.output}


def command_line(cls: type, module: str, words: str = "") -> str:
    """Return the `command:` of the component YAML; every optional input stands in $[[ ]].

    Azure ML puts values in as they are, so what may hold a space is quoted, and each is one word with its parameter: a
    value that begins with - is no parameter.
    """
    lines = [f"python -m {module}{' ' + words if words else ''}"]
    for p in params_of(cls):
        quote = "" if p.kind in ("integer", "number", "boolean") or p.enum else "'"
        group = f"--{p.name}={quote}${{{{{'outputs' if p.output else 'inputs'}.{p.name}}}}}{quote}"
        lines.append(group if p.required or p.output else f"$[[{group}]]")
    return " ".join(lines)  # one shell command: a line break would end it
