"""Model folders that are broken, each made of a good one, and what is said of it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from finetune.models.adapt import lora
from finetune.models.loading import load_model
from finetune.models.stored.configs import store_state
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.results.saving import save_adapter
from finetune.tasks import load_task
from tests.params.test_rules import finetune_params
from tests.tasks.token_classification.conftest import state as tc_state

Break = Callable[[Path], Any]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def changed(name: str, **values: Any) -> Break:
    """Other values in a JSON file; ... takes one out."""

    def write(folder: Path) -> None:
        before = json.loads((folder / name).read_text())
        after = {key: value for key, value in {**before, **values}.items() if value is not ...}
        (folder / name).write_text(json.dumps(after))

    return write


def config(**values: Any) -> Break:
    return changed("config.json", **values)


def adapter(**values: Any) -> Break:
    return changed("adapter_config.json", **values)


def holding(name: str, content: str | bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def without(*names: str) -> Break:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str, left: int) -> Break:
    return lambda folder: os.truncate(folder / name, left)


def index(weight_map: Any, name: str = "shard.safetensors") -> Break:
    """The weights in a file of another name, and an index that should name it."""

    def write(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / name)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


def linked_out(folder: Path) -> None:
    """An index that names a link to a file that lies elsewhere."""
    elsewhere = folder.parent / "elsewhere.safetensors"
    (folder / WEIGHTS).rename(elsewhere)
    (folder / "shard.safetensors").symlink_to(elsewhere)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(elsewhere), "shard.safetensors")}))


def other_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Break:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def other_words(folder: Path) -> None:
    """A tokenizer of more words than the model has."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"more{i}": len(vocabulary) + i for i in range(100)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def no_words(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] = special
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


MODELS: dict[str, tuple[Break, str]] = {
    "no vocabulary": (without("tokenizer.json"), "no vocabulary"),
    "half a vocabulary": (
        lambda folder: [without("tokenizer.json")(folder), holding("vocab.json", '{"a": 0}')(folder)],
        "no merges.txt",
    ),
    "no words": (no_words, "has no vocabulary"),
    "too many words": (other_words, "100 tokens beyond the 1,500 rows"),
    "a tokenizer that is no JSON": (holding("tokenizer.json", "{"), "no tokenizer that loads"),
    "a tokenizer of nothing": (holding("tokenizer.json", "[]"), "no tokenizer that loads"),
    "an index without a weight_map": (holding(INDEX, "{}"), "has no weight_map"),
    "an index of numbers": (index({"a": 1}), "has no weight_map"),
    "an index that is a list": (holding(INDEX, "[]"), "is not an object"),
    "an index of files that are missing": (index({"a": "model-2.safetensors"}), "lacks model-2.safetensors"),
    "an index that goes up": (index({"a": "../shard.safetensors"}), "not a file of its folder"),
    "an index that goes anywhere": (index({"a": "/etc/hostname"}), "not a file of its folder"),
    "an index that names a link out": (linked_out, "not a file of its folder"),
    "an index of weights that are missing": (index({"a": "shard.safetensors"}), "lacks weights"),
    "shards without an index": (
        lambda folder: (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors"),
        "no model.safetensors",
    ),
    "weights cut off": (cut(WEIGHTS, 100_000), "cut off"),
    "weights cut off in the header": (cut(WEIGHTS, 100), "cut off"),
    "weights that are text": (holding(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), "cut off"),
    "weights of another model": (other_weights(lambda _: {"x": torch.ones(2)}), "of another model"),
    "weights of other sizes": (config(hidden_size=64), "of another model"),
    "no config": (without("config.json"), "no config.json"),
    "a config that is a list": (holding("config.json", "[]"), "is not an object"),
    "a config that is nested": (holding("config.json", "[" * 100_000), "is not JSON"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads is 0"),
    "a size as text": (config(hidden_size="64"), 'hidden_size is "64"'),
    "a size as a fraction": (config(hidden_size=32.5), "hidden_size is 32.5"),
    "a size as true": (config(num_hidden_layers=True), "num_hidden_layers is true"),
    "too many layers": (config(num_hidden_layers=10**7), "num_hidden_layers is 10,000,000"),
    "many labels": (config(num_labels=10**9), "num_labels is 1,000,000,000"),
    "a negative size": (config(intermediate_size=-64), "intermediate_size is -64"),
    "heads that don't divide": (config(num_attention_heads=3), "not divisible"),
    "an endless table": (config(max_position_embeddings=10**8), "asks for"),
    "an unknown activation": (config(hidden_act="no_such"), "no_such"),
    "an activation of another type": (config(hidden_act={"a": 1}), "config"),
    "a value of another type": (config(hidden_dropout_prob="much"), "config"),
    "a padding id of another type": (config(pad_token_id="[PAD]"), "config"),
    "an unknown dtype": (config(dtype="no_such"), "config"),
    "quantised": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "is quantised"),
    "quantised by another": (config(quantization_config={"quant_method": "bitsandbytes"}), "is quantised"),
    "an unknown model type": (config(model_type="no_such"), "no_such"),
    "no model type": (config(model_type=...), "model_type"),
    "code of a hub": (config(attn_implementation="somebody/kernel"), "somebody/kernel"),
    "weights of another name": (config(transformers_weights="../x.safetensors"), "transformers_weights"),
}  # fmt: skip
ADAPTERS: dict[str, tuple[Break, str]] = {
    "an empty config": (holding("adapter_config.json", "{}"), "peft_type is null"),
    "no JSON": (holding("adapter_config.json", "r: 2"), "not JSON"),
    "no weights": (without("adapter_model.safetensors"), "has no adapter_model.safetensors"),
    "weights cut off": (cut("adapter_model.safetensors", 500), "cut off"),
    "a pattern that takes for ever": (adapter(target_modules="(([a-z._0-9]+)+)+!"), "no pattern"),
    "patterns in a list": (adapter(target_modules=["(a+)+$"]), "no pattern"),
    "patterns of ranks": (adapter(rank_pattern={"(a+)+$": 3}), "rank_pattern"),
    "no target": (adapter(target_modules=None), "target_modules is null"),
    "another kind": (adapter(peft_type="IA3"), 'peft_type is "IA3"'),
    "another rank": (adapter(r=3), "another rank"),
    "no rank": (adapter(r=0), "r is 0"),
    "code of its own": (adapter(megatron_config={"a": 1}, megatron_core="mark"), "megatron_config"),
    "other layers": (adapter(target_modules=["no_such_layer"]), "does not fit"),
    "no frozen model": (lambda folder: shutil.rmtree(folder / "base_model"), "adapter alone"),
    "a frozen model without weights": (without(f"base_model/{WEIGHTS}"), "no model.safetensors"),
    "a frozen model that is cut off": (cut(f"base_model/{WEIGHTS}", 5_000), "cut off"),
    "a frozen model that is an adapter": (holding("base_model/adapter_config.json", "{}"), "is an adapter itself"),
    "no vocabulary": (without("tokenizer.json"), "no vocabulary"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads is 0"),
}  # fmt: skip


def build_unmerged(base: Path, folder: Path) -> Path:
    """A folder as a run with merge_lora_weights false leaves it, of a model that tags words."""
    task, state = load_task("token_classification"), tc_state()
    model, _ = load_model(base, task, state)
    store_state(model, state, task)
    adapted, _ = lora.apply(model, finetune_params(apply_lora=True, lora_r=2))
    folder.mkdir()
    save_adapter(adapted, base, load_tokenizer(base, task), folder)  # type: ignore[arg-type]
    return folder
