"""Look at a model folder before anything is loaded: the model is whole, and brings no code.

Only JSON and the headers of safetensors are read, without torch: it takes as long for any size.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from finetune.core.console import some
from finetune.core.errors import Fault, ModelError, first_line
from finetune.core.types import Json

BASE_MODEL = "base_model"  # sub-folder of an unmerged LoRA model that holds the frozen weights
CONFIG, ADAPTER_CONFIG, ADAPTER = "config.json", "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)  # fmt: skip
AGAIN = "get the model again, and copy all of its files"


class Sizes(NamedTuple):
    """Values of a config that are numbers, by the names that families have for them."""

    names: tuple[str, ...]
    least: int
    most: int  # no real model comes near it


SIZES = (
    Sizes(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), 1, 1_000),
    Sizes(("decoder_layers", "num_decoder_layers"), 0, 1_000),
    Sizes(
        (
            "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
            "decoder_attention_heads", "num_key_value_heads",
        ),
        1,
        10_000,
    ),
    Sizes(
        (
            "hidden_size", "d_model", "dim", "n_embd", "embedding_size", "head_dim", "d_kv", "d_head",
            "intermediate_size", "hidden_dim", "d_ff", "n_inner", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim",
        ),
        1,
        1_000_000,
    ),
    Sizes(("vocab_size",), 1, 10_000_000),
    Sizes(("max_position_embeddings", "n_positions"), 1, 1_000_000_000),
    Sizes(("num_labels",), 0, 1_000_000),
)  # fmt: skip
WIDTHS, HEADS = ("hidden_size", "d_model", "dim", "n_embd"), ("num_attention_heads", "n_head", "n_heads")
OWN_HEAD_SIZE = ("head_dim", "d_kv", "d_head")
# Weights that a config may ask for beyond those in the files: a new head, the half of T5 that a file lacks, a larger
# table of positions.
MORE, BESIDES = 4, 200_000_000
# What the adapters of a run are described by; all else in adapter_config.json must be as if it were not there.
ADAPTER_VALUES = frozenset(
    ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "fan_in_fan_out", "use_dora", "use_rslora")
)
SAYS_NOTHING = frozenset(  # about the model that is built
    ("peft_type", "peft_version", "base_model_name_or_path", "inference_mode", "revision", "task_type", "auto_mapping")
)
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")


def refuse_broken(folder: Path) -> None:
    """Raise ModelError, with all that is wrong, unless the folder holds a whole model and its tokenizer."""
    refuse_adapter_alone(folder)
    base = folder / BASE_MODEL
    where = base if base.is_dir() else folder
    raise_all([*config_faults(folder), *weight_faults(where), *tokenizer_faults(folder), *adapter_faults(folder)])


def raise_all(faults: list[Fault]) -> None:
    if faults:
        raise ModelError(*faults)


def refuse_adapter_alone(folder: Path) -> None:
    """Raise ModelError if the folder holds an adapter without the model that it belongs to."""
    whole = (folder / BASE_MODEL).is_dir() and (folder / CONFIG).is_file()
    if (folder / ADAPTER_CONFIG).is_file() and not whole:
        why = f"it holds adapter_config.json, but no {BASE_MODEL}/ with the model that the adapter belongs to"
        fix = "give the pytorch_model_folder of a run, not one of its checkpoints, or merge the adapter with peft"
        raise ModelError(Fault(f"{folder} is an adapter alone", why=why, fix=fix))


def read_json(path: Path) -> Json:
    """Return the object in a JSON file. Raises: ModelError if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        why, fix = "a model begins with it", "give the folder that holds it"
        raise ModelError(Fault(f"{path.parent} has no {path.name}", why=why, fix=fix)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(Fault(f"{path} is not JSON", why=first_line(error), fix=AGAIN)) from None
    if not isinstance(values, dict):
        raise ModelError(Fault(f"{path} is not an object", why=f"it holds a {type(values).__name__}", fix=AGAIN))
    return values


def config_faults(folder: Path) -> list[Fault]:
    """Return a fault for each value of config.json that no model has."""
    try:
        values = read_json(folder / CONFIG)
    except ModelError as error:
        return list(error.faults)
    path = folder / CONFIG
    faults = [Fault(f"{path}: {what}", why=why, fix=AGAIN) for what, why in _wrong_sizes(values, "")]
    if values.get("quantization_config") or values.get("compression_config"):
        why = "weights in fewer bits can't be trained here, and --finetune_in_4bit true makes its own"
        faults.append(Fault(f"{path}: the model is quantised", why=why, fix="give the model as it was before"))
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if re.search("[/:@]", str(values.get(name, ""))):
            why = "it names code on a hub, and code that comes with a model is never run"
            faults.append(Fault(f"{path}: {name} {values[name]!r}", why=why, fix="take it out of the file"))
    if values.get("transformers_weights"):
        why = f"weights are read from {WEIGHTS} or by {INDEX} alone"
        faults.append(Fault(f"{path}: it names a file of weights", why=why, fix="take out transformers_weights"))
    return faults


def _wrong_sizes(values: Json, of: str) -> Iterator[tuple[str, str]]:
    for sizes in SIZES:
        for name in sizes.names:
            value = values.get(name)
            if value is None or isinstance(value, list | dict):  # a size for each layer
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                yield f"{of}{name} is {json.dumps(value)}", "it must be a whole number"
            elif not sizes.least <= value <= sizes.most:
                yield f"{of}{name} is {value:,}", f"it must be between {sizes.least:,} and {sizes.most:,}"
    width, heads = (next((name for name in names if type(values.get(name)) is int), "") for names in (WIDTHS, HEADS))
    parts = values[heads] if heads and width and not any(values.get(name) for name in OWN_HEAD_SIZE) else 0
    if parts > 0 and values[width] % parts:
        yield f"{of}{width} {values[width]} is not divisible by {heads} {parts}", "each head has an equal part of it"
    for name, inner in values.items():
        if isinstance(inner, dict) and name.endswith("_config") and name != "quantization_config":
            yield from _wrong_sizes(inner, f"{of}{name}.")


def mlflow_weights(folder: Path) -> Path:
    """Return the folder inside an MLflow model that holds its weights. Raises: ModelError if there is none."""
    converted = next(folder.rglob("openvino_*model.xml"), None)
    if converted is not None:
        fix = f"--openvino_model_folder {converted.parent} where it is taken, or the mlflow_model_folder of a run"
        raise ModelError(Fault(f"{folder} is a model for OpenVINO", why="it has no weights for PyTorch", fix=fix))
    found = sorted(path.parent for path in folder.rglob("config.json") if list(path.parent.glob("*.safetensors")))
    if len(found) != 1:
        why = f"{len(found)} folders in it hold config.json and safetensors"
        raise ModelError(
            Fault(
                f"{folder} is not the MLflow folder of one model", why=why, fix="give the mlflow_model_folder of a run"
            )
        )
    return found[0]


def weight_faults(folder: Path) -> list[Fault]:
    """Return a fault for each file of weights that is missing, cut off or not what the index says."""
    index = folder / INDEX
    faults = index_faults(index) if index.is_file() else []
    for path in weight_files(folder):
        faults += header_faults(path)
    if (folder / ADAPTER_CONFIG).is_file() and folder.name == BASE_MODEL:
        faults.append(Fault(f"{folder} is an adapter itself", why=f"it holds {ADAPTER_CONFIG}", fix=AGAIN))
    if not index.is_file() and not (folder / WEIGHTS).is_file():
        files = sorted(path.name for path in folder.glob("*.safetensors")) if folder.is_dir() else []
        shards = f"it has {some(files)}, and no {INDEX}" if files else f"nor {INDEX}"
        fix = "give the folder of a transformers model; model import takes pickled weights too"
        faults.append(Fault(f"{folder} has no {WEIGHTS}", why=shards, fix=fix))
    return faults


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that transformers reads there, of those that are there; others are nobody's business.

    It takes model.safetensors before an index.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    try:
        places = read_json(folder / INDEX).get("weight_map")
    except ModelError:
        return []
    names = {name for name in places.values() if isinstance(name, str)} if isinstance(places, dict) else set()
    return sorted(folder / name for name in names if Path(name).name == name and (folder / name).is_file())


def index_faults(path: Path) -> list[Fault]:
    """Return a fault for each file that the index names and that isn't there, or isn't a plain name in its folder."""
    try:
        places = read_json(path).get("weight_map")
    except ModelError as error:
        return list(error.faults)
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        return [Fault(f"{path} has no weight_map", why="it maps names of weights to files", fix=AGAIN)]
    faults = []
    for name in sorted(set(places.values())):
        file = path.parent / name
        if Path(name).name != name or "\\" in name or name == ".." or not _stays_in(file):
            what = f"{path} names {name!r}, which is not a file of its folder"
            faults.append(Fault(what, why="weights are read from one folder alone", fix=AGAIN))
        elif not file.is_file():
            faults.append(Fault(f"{path.parent} lacks {name}", why=f"{path.name} names it", fix=AGAIN))
        elif file.suffix == ".safetensors":
            faults += _not_in_shard(file, {weight for weight, place in places.items() if place == name})
    return faults


def _not_in_shard(file: Path, wanted: set[str]) -> list[Fault]:
    try:
        lost = sorted(wanted - header(file).keys())
    except ModelError:
        return []  # said of the file itself
    return [Fault(f"{file} lacks weights that the index places there", why=some(lost), fix=AGAIN)] if lost else []


def _stays_in(file: Path) -> bool:
    """Return whether what a link leads to lies beside it; the hub's cache has links to its own `blobs`."""
    folder, real = file.parent.resolve(), file.resolve()
    cached = [folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else []
    return real.parent in (folder, *cached)


def header_faults(path: Path) -> list[Fault]:
    """Return a fault if a safetensors file is cut off, or isn't one."""
    try:
        header(path)
    except ModelError as error:
        return list(error.faults)
    return []


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file. Raises: ModelError if it is cut off, or isn't one."""
    try:
        with safe_open(path, "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
        raise ModelError(
            Fault(f"{path} is cut off or damaged", why=f"{first_line(error)} ({size})", fix=AGAIN)
        ) from None


def stored_numbers(folder: Path) -> int:
    """Return how many numbers the weights of the folder are."""
    total = 0
    for path in weight_files(folder):
        for shape in header(path).values():
            numbers = 1
            for size in shape:
                numbers *= size
            total += numbers
    return total


def refuse_larger(folder: Path, wanted: int) -> None:
    """Raise ModelError if the config asks for far more numbers than the files hold: they would all be random."""
    stored = stored_numbers(folder)
    if wanted > MORE * stored + BESIDES:
        what = f"{folder / CONFIG} asks for {wanted:,} weights, the files hold {stored:,}"
        raise ModelError(Fault(what, why="it is the config of another model", fix=AGAIN))


def tokenizer_faults(folder: Path) -> list[Fault]:
    """Return a fault if the folder has no vocabulary, without which transformers makes up one of special tokens."""
    there = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not there and not _reads_bytes(folder):
        why = f"none of {', '.join(VOCABULARIES)} is there"
        return [Fault(f"{folder} has no vocabulary for its tokenizer", why=why, fix="copy the tokenizer's files too")]
    others = ("merges.txt", "source.spm")  # of GPT-2's kin, and of Marian
    if there == ["vocab.json"] and not any((folder / name).is_file() for name in others):
        why = "vocab.json is half of a tokenizer"
        return [Fault(f"{folder} has no {' or '.join(others)}", why=why, fix="copy the tokenizer's files too")]
    return []


def _reads_bytes(folder: Path) -> bool:
    """Return whether the tokenizer is ByT5's, which has bytes in place of a vocabulary."""
    path = folder / "tokenizer_config.json"
    return path.is_file() and read_json(path).get("tokenizer_class") == "ByT5Tokenizer"


def refuse_misfit(folder: Path, seen: Mapping[str, int], words: int, rows: int | None) -> None:
    """Raise ModelError if the tokenizer knows no word, or has ids beyond the rows of the model's embedding.

    `seen` are the tokens that rows may have: masks and the like may lie beyond.
    """
    if not words:
        why = "all of its tokens are special ones: every word would be unknown"
        raise ModelError(Fault(f"the tokenizer of {folder} has no vocabulary", why=why, fix=AGAIN))
    beyond = sorted((id_, token) for token, id_ in seen.items() if rows is not None and id_ >= rows)
    if beyond:
        why = some([f"{token!r} has id {id_}" for id_, token in beyond])
        what = f"the tokenizer of {folder} has {len(beyond):,} tokens beyond the {rows:,} rows of the model's embedding"
        raise ModelError(Fault(what, why=why, fix="give the tokenizer that belongs to the model"))


def adapter_faults(folder: Path) -> list[Fault]:
    """Return a fault for each part of an unmerged LoRA folder that no run of ours leaves; none without an adapter.

    peft would take patterns that need hours, and names of modules to import.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return []
    try:
        values = read_json(path)
        shapes = header(folder / ADAPTER) if (folder / ADAPTER).is_file() else None
    except ModelError as error:
        return list(error.faults)
    wrong = list(_wrong_in_adapter(values))
    if shapes is None:
        wrong.append((f"{folder} has no {ADAPTER}", "the adapter's weights are missing"))
    elif not wrong and any(shape[0] != values["r"] for name, shape in shapes.items() if ".lora_A." in name):
        wrong.append((f"{path}: r is {values['r']}", f"the adapters in {ADAPTER} have another rank"))
    return [
        Fault(what if what.startswith(str(folder)) else f"{path}: {what}", why=why, fix=AGAIN) for what, why in wrong
    ]


def adapter_values(folder: Path) -> Json:
    """Return what describes the adapter of a folder in which nothing is wrong, and nothing else."""
    return {name: value for name, value in read_json(folder / ADAPTER_CONFIG).items() if name in ADAPTER_VALUES}


def _wrong_in_adapter(values: Json) -> Iterator[tuple[str, str]]:
    if values.get("peft_type") != "LORA":
        yield f"peft_type is {json.dumps(values.get('peft_type'))}", "the adapters of a run are LORA"
    for name, least in (("r", 1), ("lora_alpha", 0)):
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
            yield f"{name} is {json.dumps(value)}", f"it must be a whole number of at least {least}"
    for name in ("target_modules", "modules_to_save"):
        value = values.get(name)
        names = value if isinstance(value, list) else [] if value is None and name == "modules_to_save" else [None]
        if not all(isinstance(one, str) and PLAIN_NAME.fullmatch(one) for one in names):
            yield f"{name} is {json.dumps(value)[:80]}", "it must be a list of plain names, no pattern"
    for name in ("fan_in_fan_out", "use_dora", "use_rslora"):
        if not isinstance(values.get(name, False), bool):
            yield f"{name} is {json.dumps(values[name])}", "it must be true or false"
    others = [name for name in sorted(values.keys() - ADAPTER_VALUES - SAYS_NOTHING) if _says_something(values, name)]
    if others:
        yield f"it has {some(others)}", "the adapters of a run have none of it"


def _says_something(values: Json, name: str) -> bool:
    """Return whether a value is away from what peft writes for nothing."""
    nothing = {"bias": "none", "init_lora_weights": True, "megatron_core": "megatron.core"}
    value = values[name]
    return bool(value) and value != nothing.get(name) and not (name.startswith("qalora_"))
