"""Import a model, from a hub id, a local folder or an MLflow model, as one folder of safetensors, config and tokenizer.

python -m finetune.model_selector --task question_answering --pytorch_model_path MODEL --output_dir OUT
"""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.azure.vault import read_secret
from finetune.core.console import quiet_libraries, say, start
from finetune.core.errors import Fault, ModelError, UnsupportedError, first_line
from finetune.core.outputs import claimed, clear
from finetune.core.process import run_main
from finetune.core.types import Json
from finetune.core.world import World
from finetune.data.folders import SelectedModel
from finetune.distributed.settlement import settle_task
from finetune.models.stored import intact, sums
from finetune.params.model_import import SELECTED, ModelImportParams
from finetune.params.schema import outputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from finetune.tasks.task import State, Task

WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model",
    "source.spm", "target.spm", "target_vocab.json",
)  # fmt: skip


def main(argv: list[str]) -> None:
    task_name, settled = settle_task(argv, "model_import", "finetune.model_selector")
    params: ModelImportParams = settled.params
    start("model import", settled.notes)
    with claimed(outputs_of(params)):
        import_model(params, task_name)


def import_model(params: ModelImportParams, task_name: str) -> None:
    """Write the model, and last what is known of it."""
    source, name = choose_source(params)
    local = source != "huggingface_id" or Path(name).is_dir()
    if local:
        refuse_broken_source(Path(name))

    quiet_libraries()
    from finetune.distributed import zero_engine
    from finetune.models.head import describe_new
    from finetune.models.loading import load_model
    from finetune.models.stored.configs import architecture, load_config
    from finetune.models.stored.tokenizers import load_tokenizer
    from finetune.tasks import load_task

    task = load_task(task_name)
    folder = Path(name) if local else fetch(name, params)
    refuse_broken_source(folder)
    sums.refuse_damaged(place_of_weights(folder))
    target = SelectedModel.model_folder(params.output_dir)
    clear(params.output_dir, SELECTED)
    if (folder / intact.ADAPTER_CONFIG).is_file():
        merge_adapter(folder, target)
    elif zero_engine.shards_of(folder):
        put_together(folder, target)
    else:
        copy_model(find_files(folder), target)
    load_tokenizer(target, task)
    config = load_config(target)
    chosen = architecture(task, config)
    rename_body(target, config, task)
    model, new = load_model(target, task, None, ignore_mismatched_sizes=True)
    say(f"{source} {name}: {config.model_type}, {model.num_parameters() / 1e6:.1f} million parameters, as {chosen}")
    for line in describe_new(model, new, config.architectures):
        say(line)
    sums.write_sums(target)
    known_as = os.path.abspath(name) if local else name  # noqa: PTH100  (its own name, not that of a link's target)
    selected = SelectedModel(task_name, source, known_as, config.model_type, chosen, tuple(new))
    selected.write(params.output_dir)


def choose_source(params: ModelImportParams) -> tuple[str, str]:
    """Return the parameter that wins, and its value; a rule sees to it that one is given."""
    names = ("pytorch_model_path", "mlflow_model_path", "huggingface_id")
    return next((name, str(value)) for name in names if (value := vars(params)[name]) is not None)


def refuse_broken_source(folder: Path) -> None:
    """Raise ModelError, before anything is copied or loaded, if the source holds no whole model."""
    if (folder / intact.ADAPTER_CONFIG).is_file():
        intact.refuse_adapter_alone(folder)
        intact.refuse_broken(folder)
        return
    files = find_files(folder)
    faults = intact.config_faults(files.config.parent)
    for path in files.weights:
        if path.name.endswith(".index.json"):
            faults += intact.index_faults(path)
        elif path.suffix == ".safetensors":
            faults += intact.header_faults(path)
    intact.raise_all(faults)


def place_of_weights(folder: Path) -> Path:
    """Return the folder of the weights: a source that isn't broken, or one inside of it."""
    adapter = (folder / intact.ADAPTER_CONFIG).is_file()
    return folder if adapter else find_files(folder).weights[0].parent


def fetch(huggingface_id: str, params: ModelImportParams, weights: bool = True) -> Path:
    """Download what is needed of a hub model: the only place that touches the network.

    Raises: ModelError, and ServiceError if the token's secret can't be read.
    """
    from huggingface_hub import snapshot_download

    revision, secret = params.huggingface_revision, params.huggingface_token_secret
    token = read_secret(secret) if secret else None  # None: that of HF_TOKEN, if there is one
    patterns = ["config.json", *TOKENIZER, *(WEIGHTS if weights else ())]
    try:
        folder = Path(snapshot_download(huggingface_id, revision=revision, allow_patterns=patterns, token=token))
        if weights and not list(folder.glob("*.safetensors")):
            patterns += PICKLED_WEIGHTS
            folder = Path(snapshot_download(huggingface_id, revision=revision, allow_patterns=patterns, token=token))
    except Exception as error:  # huggingface_hub raises its own, requests' and OS errors here
        why = f"{type(error).__name__}: {first_line(error)}"
        which = f"{huggingface_id} at {revision}" if revision else huggingface_id
        why = why.replace(token, "…") if token else why
        raise ModelError(Fault(f"{which} can't be fetched", why=why, fix=_fix(error, huggingface_id, secret))) from None
    return folder


def _fix(error: Exception, huggingface_id: str, secret: str | None) -> str:
    """Return what mends that a model of the hub can't be fetched."""
    from huggingface_hub.errors import GatedRepoError

    token = f"that of {secret}" if secret else "HF_TOKEN, or the secret of --huggingface_token_secret"
    if isinstance(error, GatedRepoError):
        return (
            f"ask for the gated model at https://huggingface.co/{huggingface_id} as the token's account; token: {token}"
        )
    return f"check id, network and token ({token}), or give --pytorch_model_path with a local folder"


@dataclass(frozen=True)
class ModelFiles:
    """The files that are taken of a source folder; nothing else in it is read."""

    config: Path
    tokenizer: list[Path]
    weights: list[Path]


def find_files(folder: Path) -> ModelFiles:
    """Return the config, tokenizer and weights of a Hugging Face folder, or from anywhere inside an MLflow model.

    Azure's models have the config twice, beside the weights and in a folder of its own. Raises: ModelError if there is
    no config, no weights or no tokenizer, or more than one.
    """
    if not folder.is_dir():
        raise ModelError(Fault(f"{folder} is not a folder", fix="give the folder that holds config.json"))
    # Checkpoints of an earlier run lie in sub-folders: a folder with a config of its own is taken alone.
    top = (folder / "config.json").is_file()
    config, tokenizer = _matching(folder, ("config.json",), top), _matching(folder, TOKENIZER, top)
    weights = _matching(folder, WEIGHTS, top) or _matching(folder, PICKLED_WEIGHTS, top)
    wanted = (
        ("config.json", config, ("config.json",)),
        ("weights", weights, WEIGHTS),
        ("tokenizer", tokenizer, TOKENIZER),
    )
    places = {path.parent for path in weights}
    config = [path for path in config if path.parent in places] or config
    tokenizer = _of_one_folder(tokenizer, places)
    fix = "give the folder of a transformers model"
    faults = [
        Fault(f"{folder} has no {name}", why=f"none of {', '.join(patterns)} is there", fix=fix)
        for name, found, patterns in wanted
        if not found
    ]
    if len(config) > 1:
        found = ", ".join(sorted(str(path.parent) for path in config))
        faults.append(Fault(f"{folder} holds {len(config)} models", why=found, fix="give the folder of one of them"))
    if faults:
        raise ModelError(*faults)
    return ModelFiles(config[0], tokenizer, weights)


def _of_one_folder(files: list[Path], places: set[Path]) -> list[Path]:
    """Return the files of a tokenizer that lie beside the weights if there is a vocabulary among them, else of another
    folder with one."""
    whole = {path.parent for path in files if path.name in intact.VOCABULARIES}
    beside = sorted(whole & places) or sorted(whole)
    return [path for path in files if path.parent == beside[0]] if beside else files


def _matching(folder: Path, patterns: tuple[str, ...], top: bool) -> list[Path]:
    return sorted(path for pattern in patterns for path in (folder.glob(pattern) if top else folder.rglob(pattern)))


def copy_model(files: ModelFiles, target: Path) -> None:
    """Copy config, tokenizer and weights into one folder; pickled weights are rewritten as safetensors."""
    target.mkdir(parents=True, exist_ok=True)
    pickled = [path for path in files.weights if path.suffix == ".bin"]
    for path in (files.config, *files.tokenizer, *(() if pickled else files.weights)):
        shutil.copyfile(path, target / path.name)
    if pickled:
        save_as_safetensors(pickled, target / "model.safetensors")


def rename_body(folder: Path, config: "PreTrainedConfig", task: "Task[State]") -> None:
    """Rename the body's weights to the name that the task's class has for the body.

    transformers' classes for questions of Llama, Qwen and their kin call "transformer" what all their other classes
    call "model", and would find no weight.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, MODEL_MAPPING

    wanted = task.model.families[type(config)].base_model_prefix
    kinds: list[Any] = [m.get(type(config), None) for m in (MODEL_MAPPING, MODEL_FOR_QUESTION_ANSWERING_MAPPING)]
    known = {kind.base_model_prefix for kind in kinds if not isinstance(kind, tuple | None)}
    others = tuple(f"{name}." for name in known - {wanted})
    if not others:
        return

    def renamed(name: str) -> str:
        return f"{wanted}.{name.partition('.')[2]}" if name.startswith(others) else name

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if not any(name.startswith(others) for name in names):
                continue
            tensors = {renamed(name): file.get_tensor(name) for name in names}
        written = path.with_suffix(".renamed")  # the tensors may still be read from the file itself
        save_file(tensors, written, metadata={"format": "pt"})
        written.replace(path)
    for path in folder.glob("*.safetensors.index.json"):
        index = json.loads(path.read_text(encoding="utf-8"))
        index["weight_map"] = {renamed(name): place for name, place in index["weight_map"].items()}
        path.write_text(json.dumps(index), encoding="utf-8")


def merge_adapter(folder: Path, target: Path) -> None:
    """Write an unmerged LoRA model of an earlier run, of any task, as one plain model.

    Raises: ModelError if it isn't one, but an adapter alone.
    """
    from safetensors.torch import load_file

    from finetune.models.loading import load_model
    from finetune.models.stored.configs import stored_task
    from finetune.models.stored.tokenizers import load_tokenizer
    from finetune.tasks import load_task

    intact.refuse_adapter_alone(folder)
    name = stored_task(folder)
    if name is None:
        why = "its config.json doesn't say for which task it was trained"
        raise ModelError(
            Fault(f"{folder} is not the folder of an earlier run", why=why, fix="merge the adapter with peft")
        )
    model, _ = load_model(folder, load_task(name), None)
    prefix = f"{model.base_model_prefix}."
    weights = {name.removeprefix(prefix): (name, tensor) for name, tensor in model.state_dict().items()}
    # What the task's class has no use for: the next task may need T5's decoder, which a tagger lacks.
    rest = {
        name: tensor
        for path in sorted((folder / intact.BASE_MODEL).glob("*.safetensors"))
        for name, tensor in load_file(path).items()
        if name.removeprefix(prefix) not in weights
    }
    model.save_pretrained(target, state_dict={**rest, **dict(weights.values())})
    load_tokenizer(folder, load_task(name)).save_pretrained(target)


def put_together(checkpoint: Path, target: Path) -> None:
    """Write the weights of a checkpoint that DeepSpeed has sharded, for a run with any number of processes.

    Raises: ModelError if it is damaged, UnsupportedError without DeepSpeed.
    """
    from safetensors.torch import save_file

    from finetune.distributed import zero_engine
    from finetune.training import checkpoints, resume

    if not World.here().has_deepspeed():
        why, fix = "its weights are shards of DeepSpeed, which is not installed", 'pip install ".[deepspeed]"'
        raise UnsupportedError(Fault(f"{checkpoint} can't be put together", why=why, fix=fix))
    if why := checkpoints.why_incomplete(checkpoint):
        raise ModelError(Fault(f"{checkpoint} is incomplete", why=why, fix="give the checkpoint before it"))
    with resume.reading_data_alone(checkpoint, of_deepspeed=True):
        weights = zero_engine.put_together(checkpoint)
    files = find_files(checkpoint)
    copy_model(replace(files, weights=[]), target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    say(f"{checkpoint.name}: put together from DeepSpeed's shards, in 32 bits")


def save_as_safetensors(pickled: list[Path], target: Path) -> None:
    """Write pickled weights as safetensors. Raises: ModelError if a file holds anything but named tensors."""
    import torch
    from safetensors.torch import save_file

    tensors: Json = {}
    fix = "convert it to safetensors on a machine where you trust it"
    for path in pickled:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a broken pickle can raise anything
            why = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(Fault(f"{path} can't be read as plain tensors", why=why, fix=fix)) from None
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise ModelError(Fault(f"{path} is not a mapping of names to tensors", fix=fix))
        tensors |= content
    # Tied weights share memory, which safetensors refuses.
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, target, metadata={"format": "pt"}
    )
    say(f"pickled weights rewritten as {target.name}")


if __name__ == "__main__":
    run_main(main)
