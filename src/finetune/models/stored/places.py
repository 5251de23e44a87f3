"""Keep out of published models where things lay on the machines that made them."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetensors import safe_open

FORMAT = {"format": "pt"}  # what transformers looks for
CONFIGS = ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json")
NAMES_OF_PLACES = ("path", "_file", "_dir", "_folder")  # how they end: _name_or_path, tokenizer_file, cache_dir


def leave_out_places(folder: Path) -> None:
    """Leave the absolute paths out of the configs in the folder, which libraries write there and never need.

    Those that an imported model brings along are of other machines.
    """
    for path in sorted(path for name in CONFIGS for path in folder.rglob(name)):
        values = json.loads(path.read_text(encoding="utf-8"))
        kept = _without_places(values)
        if kept != values:
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def leave_out_remarks(weights: Path) -> None:
    """Leave out what a safetensors file says beside its tensors; whoever made it may have written anything there."""
    from safetensors.torch import save_file

    with safe_open(weights, "pt") as file:
        if not (file.metadata() or {}).keys() - FORMAT.keys():
            return
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
    part = weights.with_suffix(".part")  # the tensors may still be read from the file itself
    save_file(tensors, part, metadata=FORMAT)
    part.replace(weights)


def _without_places(value: object) -> object:
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_places(item) for key, item in value.items() if not _is_place(key, item)}


def _is_place(key: str, value: object) -> bool:
    if not isinstance(value, str) or not key.endswith(NAMES_OF_PLACES):
        return False
    return PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
