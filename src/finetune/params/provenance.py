"""Write resolved_config.yaml: every parameter, its value and where it comes from, and every value that was derived."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from finetune.params.finetune import FinetuneParams
from finetune.params.schema import params_of


@dataclass(frozen=True)
class Derived:
    """A value that follows from others instead of being taken from the command line."""

    name: str
    value: object
    reason: str
    warning: bool = False  # it is not what was asked for

    def __str__(self) -> str:
        return f"{'warning: ' if self.warning else ''}{self.name}: {self.value} ({self.reason})"


def write_resolved(asked: FinetuneParams, found: Sequence[Derived], folder: Path) -> None:
    """Write the file beside the model; `asked` is the command line, `found` all that replaces a part of it."""
    import yaml

    defaults = {f.name: f.default for f in fields(asked)}
    overridden = {d.name: d for d in found}
    entries = {}
    for p in params_of(type(asked)):
        value = vars(asked)[p.name]
        origin = "default" if value == defaults[p.name] else "given"
        entries[p.name] = {"value": str(value) if isinstance(value, Path) else value, "origin": origin}
        if p.name in overridden:
            entries[p.name] |= {"used": overridden[p.name].value, "origin": f"derived: {overridden[p.name].reason}"}
    extra = {d.name: {"value": d.value, "origin": f"derived: {d.reason}"} for d in found if d.name not in entries}
    text = yaml.safe_dump(entries | extra, sort_keys=False, allow_unicode=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resolved_config.yaml").write_text(text, encoding="utf-8")
