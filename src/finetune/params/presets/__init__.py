"""The presets, recommended values that presets.yaml holds."""

from dataclasses import fields, replace
from pathlib import Path

from finetune.core.types import Json
from finetune.params.finetune import FinetuneParams
from finetune.params.provenance import Derived

FILE = Path(__file__).with_name("presets.yaml")


def load(processes: int) -> dict[str, Json]:
    """Return the values that each preset recommends for a run of so many processes."""
    import yaml

    presets: dict[str, Json] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for values in presets.values():
        on_several = values.pop("on_several_devices", {})
        if processes > 1:
            values.update(on_several)
    return presets


def with_preset(params: FinetuneParams, processes: int) -> tuple[FinetuneParams, list[Derived]]:
    """Return the parameters with the values of their preset wherever they are at their default, and which those are.

    A value given away from its default wins. One given at its default can't be told from one that isn't given: Azure
    ML puts every default into the command.
    """
    if params.preset == "none":
        return params, []
    defaults = {f.name: f.default for f in fields(params)}
    wanted = load(processes)[params.preset]
    taken = {name: value for name, value in wanted.items() if vars(params)[name] == defaults[name]}
    reason = f"preset {params.preset}"
    return replace(params, **taken), [Derived(name, value, reason) for name, value in taken.items()]
