"""Model import through its command line: any source -> one folder of safetensors, config and tokenizer."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

from finetune import model_selector
from finetune.core.errors import ModelError, ParameterError
from finetune.core.process import run_main
from finetune.data.folders import SelectedModel
from finetune.models.loading import load_model
from finetune.tasks import load_task
from tests.azure.gated import SECRET, TOKEN, VAULT, Gated
from tests.conftest import build_tiny_model
from tests.families import build_family

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def select(output: Path, **sources: Any) -> SelectedModel:
    words = [word for name, value in sources.items() for word in (f"--{name}", str(value))]
    model_selector.main(["--task", "question_answering", *words, "--output_dir", str(output)])
    return SelectedModel.read(output, "question_answering")


def loaded(output: Path) -> dict[str, torch.Tensor]:
    """The encoder's weights as finetuning will load them."""
    model, _ = load_model(SelectedModel.model_folder(output), load_task("question_answering"), None)
    weights: dict[str, torch.Tensor] = model.base_model.state_dict()
    return weights


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def filled(tiny_model: Path, folder: Path, value: float, **how: Any) -> Path:
    """A copy of the tiny model with all weights alike."""
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    model = BertModel.from_pretrained(tiny_model)
    for parameter in model.parameters():
        parameter.data.fill_(value)
    model.save_pretrained(folder, **how)
    return folder


def is_filled(output: Path, value: float) -> bool:
    return all(bool((weight == value).all()) for weight in loaded(output).values() if weight.is_floating_point())


def pickled(tiny_model: Path, folder: Path, content: Any = None) -> Path:
    """A copy of the tiny model whose weights are pickled."""
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights if content is None else content, folder / "pytorch_model.bin")
    return folder


def mlflow_like(tiny_model: Path, folder: Path) -> Path:
    """The layout of the published components' MLflow models."""
    for name in ("model", "config", "tokenizer"):
        (folder / "data" / name).mkdir(parents=True)
    shutil.copy(tiny_model / "model.safetensors", folder / "data" / "model")
    shutil.copy(tiny_model / "config.json", folder / "data" / "config")
    for name in TOKENIZER_FILES:
        shutil.copy(tiny_model / name, folder / "data" / "tokenizer")
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / "data" / "loader.py").write_text("raise RuntimeError('this must never run')\n")
    return folder


def works(tiny_model: Path, output: Path) -> None:
    """The output folder is the tiny model, with its tokenizer."""
    folder = SelectedModel.model_folder(output)
    assert same(loaded(output), BertModel.from_pretrained(tiny_model, add_pooling_layer=False).state_dict())
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(tiny_model).get_vocab()


# --- sources ---


def test_safetensors_folder(tiny_model: Path, tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    shutil.copytree(tiny_model, source, dirs_exist_ok=True)
    (source / "modeling_own.py").write_text("raise RuntimeError('this must never run')\n")
    build_tiny_model(_made(source / "checkpoint-1"), num_hidden_layers=1)
    selected = select(tmp_path / "out", pytorch_model_path=source)
    works(tiny_model, tmp_path / "out")
    assert selected == SelectedModel(
        "question_answering", "pytorch_model_path", str(source), "bert", "BertForQuestionAnswering",
        ("qa_outputs.bias", "qa_outputs.weight"),
    )  # fmt: skip
    names = {path.name for path in SelectedModel.model_folder(tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "SHA256SUMS", *TOKENIZER_FILES}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_sharded_safetensors(tiny_model: Path, tmp_path: Path) -> None:
    source = filled(tiny_model, tmp_path / "source", 0.5, max_shard_size="50KB")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    select(tmp_path / "out", pytorch_model_path=source)
    assert is_filled(tmp_path / "out", 0.5)


def test_pickled_weights_are_rewritten(tiny_model: Path, tmp_path: Path) -> None:
    select(tmp_path / "out", pytorch_model_path=pickled(tiny_model, tmp_path / "source"))
    works(tiny_model, tmp_path / "out")
    folder = SelectedModel.model_folder(tmp_path / "out")
    assert same(load_file(folder / "model.safetensors"), load_file(tiny_model / "model.safetensors"))
    assert not list(folder.glob("*.bin"))


def test_tied_weights_in_a_pickle(tiny_model: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_model / "model.safetensors")
    embeddings = weights["embeddings.word_embeddings.weight"]
    source = pickled(tiny_model, tmp_path / "source", {**weights, "cls.predictions.decoder.weight": embeddings})
    select(tmp_path / "out", pytorch_model_path=source)
    works(tiny_model, tmp_path / "out")


class Code:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return Path.write_text, (Path(self.mark), "ran")  # type: ignore[return-value]


def test_pickle_with_code_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    source = pickled(tiny_model, tmp_path / "source", {"weight": Code(mark)})
    with pytest.raises(ModelError, match="can't be read as plain tensors"):
        select(tmp_path / "out", pytorch_model_path=source)
    assert not mark.exists()
    torch.load(source / "pytorch_model.bin", weights_only=False)
    assert mark.read_text() == "ran"


def test_mlflow_folder(tiny_model: Path, tmp_path: Path) -> None:
    selected = select(tmp_path / "out", mlflow_model_path=mlflow_like(tiny_model, tmp_path / "mlflow"))
    works(tiny_model, tmp_path / "out")
    assert selected.source == "mlflow_model_path"


# Where MLflow models of Azure's registry and of its published finetuning keep their parts: weights, tokenizer, and
# each config, by flavor.
LAYOUTS = {
    "transformers": ("model", "components/tokenizer", ("model",)),
    "hftransformers": ("data/model", "data/tokenizer", ("data/model", "data/config")),
    "hftransformersv2": ("data/model", "data/tokenizer", ("data/model", "data/config")),
    "config apart": ("data/model", "data/tokenizer", ("data/config",)),
    "tokenizer twice": ("data/model", "data/model", ("data/model",)),
}


@pytest.mark.parametrize("flavor", LAYOUTS)
def test_layouts_of_azures_registry(flavor: str, tiny_model: Path, tmp_path: Path) -> None:
    weights, tokenizer, configs = LAYOUTS[flavor]
    source = tmp_path / "registered" / "mlflow_model_folder"
    parts = [(weights, "model.safetensors"), *((place, "config.json") for place in configs)]
    for place, name in (*parts, *((tokenizer, name) for name in TOKENIZER_FILES)):
        (source / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_model / name, source / place / name)
    (source / "MLmodel").write_text(f"flavors:\n  {flavor.split(maxsplit=1)[0]}: {{task_type: fill-mask}}\n")
    if flavor == "tokenizer twice":  # the one beside the weights is whole, the other is a remnant
        (source / "data" / "tokenizer").mkdir()
        (source / "data" / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    select(tmp_path / "out", mlflow_model_path=tmp_path / "registered")
    works(tiny_model, tmp_path / "out")
    copied = tmp_path / "out" / "model" / "tokenizer_config.json"
    assert copied.read_bytes() == (tiny_model / "tokenizer_config.json").read_bytes()


def test_mlflow_folder_of_ours(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "mlflow" / "artifacts" / "model")
    select(tmp_path / "out", mlflow_model_path=tmp_path / "mlflow")
    works(tiny_model, tmp_path / "out")


def test_local_folder_as_id(tiny_model: Path, tmp_path: Path) -> None:
    selected = select(tmp_path / "out", huggingface_id=tiny_model)
    works(tiny_model, tmp_path / "out")
    assert (selected.source, selected.source_name) == ("huggingface_id", str(tiny_model))


def test_precedence(tiny_model: Path, tmp_path: Path) -> None:
    first, second, third = (filled(tiny_model, tmp_path / str(value), value) for value in (1.0, 2.0, 3.0))
    all_three = {"huggingface_id": third, "mlflow_model_path": second, "pytorch_model_path": first}
    assert select(tmp_path / "a", **all_three).source == "pytorch_model_path"
    assert is_filled(tmp_path / "a", 1.0)
    del all_three["pytorch_model_path"]
    assert select(tmp_path / "b", **all_three).source == "mlflow_model_path"
    assert is_filled(tmp_path / "b", 2.0)


@pytest.mark.parametrize("shards", [(1, 2), (2, 1)])
def test_rerun_into_the_same_folder(tiny_model: Path, tmp_path: Path, shards: tuple[int, int]) -> None:
    """Nothing of the model imported before is left, whichever of the two was in shards."""
    for value, count in zip((1.0, 2.0), shards, strict=True):
        size = "50KB" if count > 1 else "50GB"
        select(
            tmp_path / "out",
            pytorch_model_path=filled(tiny_model, tmp_path / f"source{value}", value, max_shard_size=size),
        )
        assert is_filled(tmp_path / "out", value)


def test_failed_rerun_leaves_no_whole_folder(tiny_model: Path, tmp_path: Path) -> None:
    select(tmp_path / "out", pytorch_model_path=tiny_model)
    source = broken(tiny_model, tmp_path / "source", "config.json", b'{"model_type": "vit"}')
    with pytest.raises(ModelError):
        select(tmp_path / "out", pytorch_model_path=source)
    assert not (tmp_path / "out" / "model_selector_args.json").exists()


# --- errors ---


def broken(tiny_model: Path, folder: Path, name: str, content: bytes | None) -> Path:
    """A copy of the tiny model with one file replaced or taken away."""
    shutil.copytree(tiny_model, folder)
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"{", "config"),
        ("config.json", b"{}", "config"),
        ("config.json", json.dumps({"model_type": "unheard-of"}).encode(), "unheard-of"),
        ("config.json", json.dumps({"model_type": "vit"}).encode(), "model type vit can't be finetuned"),
        ("model.safetensors", None, "has no weights"),
        ("model.safetensors", b"", "cut off"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}", "cut off"),
        ("tokenizer.json", b"{", "tokenizer"),
    ],
)
def test_broken_folder(tiny_model: Path, tmp_path: Path, name: str, content: bytes | None, part: str) -> None:
    source = broken(tiny_model, tmp_path / "source", name, content)
    with pytest.raises(ModelError) as caught:
        select(tmp_path / "out", pytorch_model_path=source)
    assert part in str(caught.value)


def test_folder_without_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    """transformers 5 makes up an empty tokenizer of special tokens there, with which every word is unknown."""
    source = shutil.copytree(tiny_model, tmp_path / "source", ignore=shutil.ignore_patterns(*TOKENIZER_FILES))
    with pytest.raises(ModelError, match="tokenizer"):
        select(tmp_path / "out", pytorch_model_path=source)


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {"weight": torch.ones(2)}}, {"epoch": 3}, [torch.ones(2)], torch.ones(2)],
    ids=["nested", "number", "list", "tensor"],
)
def test_pickle_that_is_no_state_dict(tiny_model: Path, tmp_path: Path, content: Any) -> None:
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        select(tmp_path / "out", pytorch_model_path=pickled(tiny_model, tmp_path / "source", content))


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 cut off"])
def test_pickle_that_is_broken(tiny_model: Path, tmp_path: Path, content: bytes) -> None:
    source = pickled(tiny_model, tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        select(tmp_path / "out", pytorch_model_path=source)


def test_weights_of_another_model(tiny_model: Path, tmp_path: Path) -> None:
    """No weight of the file fits: nothing pretrained would be left to finetune."""
    source = pickled(tiny_model, tmp_path / "source", {"other.weight": torch.ones(2)})
    with pytest.raises(ModelError):
        select(tmp_path / "out", pytorch_model_path=source)


def test_unknown_hub_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    for name in ("nobody/no-such-model", "no such/id"):
        with pytest.raises(ModelError, match="can't be fetched"):
            select(tmp_path / "out", huggingface_id=name)
    with pytest.raises(SystemExit) as ended:
        run_main(
            model_selector.main,
            ["--task", "question_answering", "--huggingface_id", "nobody/x", "--output_dir", str(tmp_path)],
        )
    assert ended.value.code == ModelError.exit_code
    assert "Traceback" not in capsys.readouterr().err


# Imports by each list of words, in one process, whose variables libraries read when they are imported.
IMPORTS = """
import json, sys
from finetune.core.process import run_main
from finetune.model_selector import main
for words in json.loads(sys.argv[1]):
    run_main(main, words)
"""


def test_a_revision_of_a_hub_model(tiny_model: Path, tmp_path: Path) -> None:
    """Out of the hub's own cache, as there is no network."""
    cache = tmp_path / "hub" / "models--org--tiny"
    (tmp_path / "other").mkdir()
    other = build_tiny_model(tmp_path / "other", num_hidden_layers=1)
    (cache / "refs").mkdir(parents=True)
    for name, commit, source in (("main", "1" * 40, tiny_model), ("v2", "2" * 40, other)):
        (cache / "refs" / name).write_text(commit)
        shutil.copytree(source, cache / "snapshots" / commit)
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_secret"}
    revisions = {(): 2, ("v2",): 1, ("2" * 40,): 1, ("v3",): None}  # with the layers of what is found
    words = ["--task", "question_answering", "--huggingface_id", "org/tiny"]
    outs = [tmp_path / f"out{i}" for i in range(len(revisions))]
    commands = [
        [*words, *(word for name in revision for word in ("--huggingface_revision", name)), "--output_dir", str(out)]
        for revision, out in zip(revisions, outs, strict=True)
    ]
    command = [sys.executable, "-c", IMPORTS, json.dumps(commands)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "hf_secret" not in ran.stdout + ran.stderr
    assert ran.returncode == ModelError.exit_code, ran.stderr
    for out, layers in zip(outs, revisions.values(), strict=True):
        if layers:
            assert json.loads((out / "model" / "config.json").read_text())["num_hidden_layers"] == layers
    assert "org/tiny at v3 can't be fetched" in ran.stderr and ran.stderr.count("fetched") == 1


# Imports by the words behind it; exit code 3 if a process that is started then would have the first word.
IMPORT = """
import os, sys
from finetune.core.process import run_main
from finetune.model_selector import main
run_main(main, sys.argv[2:])
sys.exit(3 * any(sys.argv[1] in value for value in os.environ.values()))
"""


ELSEWHERE = f"https://{VAULT}/secrets/other"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("secret", "variables", "code"),
    [
        (SECRET, {"HF_TOKEN": "hf_of_somebody_else"}, 0),
        pytest.param("", {"HF_TOKEN": TOKEN}, 3, marks=pytest.mark.thorough),
        pytest.param("", {}, ModelError.exit_code, marks=pytest.mark.thorough),
        (ELSEWHERE, {}, ModelError.exit_code),
    ],
)
def test_a_gated_model_by_a_secret(
    tiny_model: Path, tmp_path: Path, secret: str, variables: dict[str, str], code: int
) -> None:
    """The token of the vault goes to the hub and is nowhere else; HF_TOKEN does without a vault."""
    home = tmp_path / "home"
    with Gated(tmp_path, tiny_model) as service:
        clean = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | service.environment()
        words = ["--task", "question_answering", "--huggingface_id", "org/gated", "--output_dir", str(home / "out")]
        words += ["--huggingface_token_secret", secret] if secret else []
        command, env = [sys.executable, "-c", IMPORT, TOKEN, *words], {**clean, **variables, "HF_HOME": str(home)}
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == code, ran.stderr
        assert any("/secrets/" in path for path in service.asked) == bool(secret)
    assert TOKEN not in ran.stdout + ran.stderr
    written = [file for file in home.rglob("*") if file.is_file()]
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]
    assert (home / "out" / "model" / "model.safetensors").is_file() == (code != ModelError.exit_code)
    if code == ModelError.exit_code:
        assert "fix: ask for the gated model at https://huggingface.co/org/gated" in ran.stderr
        assert (f"token: that of {ELSEWHERE}" in ran.stderr) == bool(secret)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no model is given"):
        select(tmp_path / "out")


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises((ModelError, ParameterError), match="none"):
        select(tmp_path / "out", pytorch_model_path=tmp_path / "none")


def test_weights_of_llama_are_renamed_as_they_are(tmp_path: Path) -> None:
    """In every shard and the index, without a change of type."""
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    source.mkdir()
    build_family("llama", source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="100KB")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    words = ["--task", "question_answering", "--output_dir", str(tmp_path / "out")]
    model_selector.main([*words, "--pytorch_model_path", str(source)])
    folder = SelectedModel.model_folder(tmp_path / "out")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    stored = {name: w for path in folder.glob("*.safetensors") for name, w in load_file(path).items()}
    assert stored.keys() == index.keys() and {w.dtype for w in stored.values()} == {torch.float32}
    assert all((folder / place).is_file() for place in index.values())
    loaded, new = load_model(folder, load_task("question_answering"), None)
    assert new == ["qa_outputs.bias", "qa_outputs.weight"]
    assert loaded.transformer.layers[1].mlp.up_proj.weight.equal(model.model.layers[1].mlp.up_proj.weight)


def test_a_folder_of_several_models_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny_model, tmp_path / "both" / name)
    with pytest.raises(ModelError, match="holds 2 models"):
        words = ["--task", "question_answering", "--output_dir", str(tmp_path / "out")]
        model_selector.main([*words, "--pytorch_model_path", str(tmp_path / "both")])
