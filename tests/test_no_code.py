"""No code from files: all that is loaded from folders, each with code in it that would leave a mark if it ran.

POISONS is the list of what is read of a model folder, CHECKPOINT of what a resumed run reads, HANDED of what lies
between components, and the rest of the module is what reads them.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import evaluation, model_selector, preprocess, run
from finetune.core.errors import DataError, HandoffError, ModelError, ParameterError
from finetune.distributed.zero_engine import write_data_alone
from finetune.training.resume import reading_data_alone
from tests.broken_models import build_unmerged
from tests.conftest import finetune_words, sample_rows, write_jsonl

Poison = Callable[[Path, Path], Any]  # of a folder, with the mark
TAGS = ["--task", "token_classification"]


class Code:
    """Unpickling it makes the mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path, str]]:
        return Path.write_text, (self.mark, "ran")


def pickled(name: str, but: str | None = None) -> Poison:
    """A pickle that holds the weights, and code; in place of another file, or of none."""

    def write(folder: Path, mark: Path) -> None:
        file = folder / "model.safetensors"
        weights = {key: value.clone() for key, value in load_file(file).items()} if file.is_file() else {}
        torch.save({**weights, "x": Code(mark)}, folder / name)
        if but:
            (folder / but).unlink()

    return write


def module(folder: Path, mark: Path, name: str = "hostile") -> str:
    """A module in the folder that makes the mark when it is imported."""
    text = f"from pathlib import Path\nPath({str(mark)!r}).write_text('ran')\nclass Own:\n    pass\n"
    (folder / f"{name}.py").write_text(text)
    return name


def naming(name: str, values: Callable[[str], dict[str, Any]]) -> Poison:
    """A module in the folder, and a JSON file with values that name it."""

    def write(folder: Path, mark: Path) -> None:
        before = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({**before, **values(module(folder, mark))}))

    return write


def mlflow(**function: str) -> Poison:
    """The model inside an MLflow model whose python_function is code."""

    def write(folder: Path, mark: Path) -> None:
        inner = folder / "artifacts" / "model"
        inner.mkdir(parents=True)
        for path in [path for path in folder.iterdir() if path.is_file()]:
            path.rename(inner / path.name)
        (folder / "code").mkdir()
        module(folder / "code", mark)
        flavor = {"code": "code", "loader_module": "hostile", "python_version": "3.11.7", **function}
        (folder / "MLmodel").write_text(json.dumps({"flavors": {"python_function": flavor}}))
        torch.save(Code(mark), folder / "python_model.pkl")

    return write


AUTO = {"AutoModelForTokenClassification": "hostile.Own", "AutoConfig": "hostile.Own", "AutoModel": "hostile.Own"}
PIPELINE = {"ner": {"impl": "hostile.Own", "pt": ["AutoModelForTokenClassification"]}}
# What is loaded of a model folder: how it is poisoned, and whether model import and evaluation refuse it; where they
# don't, they read what is plain of it.
POISONS: dict[str, tuple[Poison, bool]] = {
    "pytorch_model.bin": (pickled("pytorch_model.bin", "model.safetensors"), True),
    "pytorch_model-1.bin": (pickled("pytorch_model-00001-of-00001.bin", "model.safetensors"), True),
    "pytorch_model.bin beside safetensors": (pickled("pytorch_model.bin"), False),
    "a pickle named model.safetensors": (pickled("model.safetensors"), True),
    "auto_map of a known model": (naming("config.json", lambda name: {"auto_map": AUTO}), False),
    "auto_map of an unknown one": (naming("config.json", lambda name: {"auto_map": AUTO, "model_type": name}), True),
    "trust_remote_code": (naming("config.json", lambda _: {"auto_map": AUTO, "trust_remote_code": True}), False),
    "custom_pipelines": (naming("config.json", lambda _: {"custom_pipelines": PIPELINE}), False),
    "custom_pipeline": (naming("config.json", lambda name: {"custom_pipeline": name}), False),
    "attn_implementation": (naming("config.json", lambda name: {"_attn_implementation": f"./{name}"}), True),
    "auto_map of a tokenizer": (
        naming("tokenizer_config.json", lambda _: {"auto_map": {"AutoTokenizer": ["hostile.Own", "hostile.Own"]}}),
        False,
    ),
    "a class of a tokenizer": (
        naming(
            "tokenizer_config.json",
            lambda _: {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["hostile.Own", None]}},
        ),
        False,
    ),
    "generation_config.json": (naming("generation_config.json", lambda name: {"custom_generate": name}), False),
    "loader_module of MLflow": (mlflow(), False),
    "python_model of MLflow": (mlflow(loader_module="mlflow.pyfunc.model", python_model="python_model.pkl"), False),
}
ADAPTERS: dict[str, Poison] = {
    "adapter_model.bin": pickled("adapter_model.bin", "adapter_model.safetensors"),
    "a pickle named adapter_model.safetensors": pickled("adapter_model.safetensors"),
    "megatron_core": naming("adapter_config.json", lambda name: {"megatron_config": {"a": 1}, "megatron_core": name}),
    "corda_config": naming("adapter_config.json", lambda _: {"init_lora_weights": "corda", "corda_config": {"a": 1}}),
}
CHECKPOINT = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.bin")
SHARDS = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there if any code ran."""
    return tmp_path / "mark"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", sample_rows("test", TAGS[1])[:2]))


@pytest.fixture(scope="module")
def unmerged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_unmerged(tiny_model, tmp_path_factory.mktemp("unmerged") / "model")


def test_the_mark_itself(mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(Code(mark), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert mark.read_text() == "ran"
    mark.unlink()
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__(module(tmp_path, mark, "hostile_for_this_test"))
    assert mark.read_text() == "ran"


def taken(folder: Path, name: str, output: Path) -> None:
    model_selector.main([*TAGS, f"--{name}", str(folder), "--output_dir", str(output)])


def scored(folder: Path, name: str, rows: str, output: Path) -> None:
    evaluation.main([*TAGS, f"--{name}", str(folder), "--test_data", rows, "--evaluation_result", str(output)])


@pytest.mark.parametrize("name", POISONS)
def test_model_folders(name: str, tiny_model: Path, rows: str, mark: Path, tmp_path: Path) -> None:
    poison, refused = POISONS[name]
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    poison(folder, mark)
    is_mlflow = (folder / "MLmodel").is_file()
    calls: list[Callable[[], None]] = [
        lambda: taken(folder, "mlflow_model_path", tmp_path / "mlflow"),
        lambda: scored(folder, "mlflow_model_folder", rows, tmp_path / "mlflow_result"),
    ]
    if not is_mlflow:
        calls += [
            lambda: taken(folder, "pytorch_model_path", tmp_path / "imported"),
            lambda: taken(folder, "huggingface_id", tmp_path / "imported_id"),
            lambda: scored(folder, "pytorch_model_folder", rows, tmp_path / "result"),
        ]
    for call in calls:
        if refused:
            with pytest.raises(ModelError):
                call()
        else:
            call()
        assert not mark.exists()
    for path in tmp_path.glob("*/model/*"):
        if path.is_relative_to(tmp_path / "imported") or path.is_relative_to(tmp_path / "mlflow"):
            assert path.suffix not in (".py", ".pkl", ".bin"), path


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(
    name: str, unmerged: Path, rows: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(unmerged, tmp_path / "model")
    ADAPTERS[name](folder, mark)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ModelError):
        taken(folder, "pytorch_model_path", tmp_path / "imported")
    with pytest.raises(ModelError):
        scored(folder, "pytorch_model_folder", rows, tmp_path / "result")
    assert not mark.exists()


@pytest.fixture(scope="module")
def left(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a run of which two of four steps are done."""
    folder = tmp_path_factory.mktemp("left")
    run.main(words(prepared, folder, "false"))
    shutil.rmtree(folder / "pytorch" / "checkpoint-2")
    return folder


def words(prepared: Path, output: Path, resume: str) -> list[str]:
    given = {"per_device_train_batch_size": 4, "max_steps": 2, "evaluation_strategy": "steps", "eval_steps": 1}
    return finetune_words(prepared, output, **given, resume_from_checkpoint=resume)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINT)
def test_checkpoints(name: str, prepared: Path, left: Path, mark: Path, tmp_path: Path) -> None:
    shutil.copytree(left, tmp_path / "out")
    checkpoint = tmp_path / "out" / "pytorch" / "checkpoint-1"
    pickled(name)(checkpoint, mark)
    marker = json.loads((checkpoint / "complete").read_text())
    del marker["checksums"], marker["marker"]  # as if nobody had known the content
    marker["files"] = {file: (checkpoint / file).stat().st_size for file in {*marker["files"], name}}
    (checkpoint / "complete").write_text(json.dumps(marker))
    with pytest.raises(ModelError, match=name) as caught:
        run.main(words(prepared, tmp_path / "out", "true"))
    assert "pathlib" in str(caught.value) and "fix" in str(caught.value)
    assert not mark.exists()


@pytest.mark.slow
def test_a_checkpoint_without_code_is_gone_on_from(prepared: Path, left: Path, tmp_path: Path) -> None:
    shutil.copytree(left, tmp_path / "out")
    run.main(words(prepared, tmp_path / "out", "true"))
    assert (tmp_path / "out" / "pytorch" / "checkpoint-2" / "complete").is_file()


@pytest.mark.parametrize("name", SHARDS)
def test_shards_of_deepspeed(name: str, mark: Path, tmp_path: Path) -> None:
    """Whatever is asked of PyTorch while a run goes on, and before that with the name of the file."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    own = {"scaler": DynamicLossScaler(1.0, 2.0, 1, 1.0, 1, False), "stage": ZeroStageEnum(2), "ones": torch.ones(2)}
    checkpoint = tmp_path / "checkpoint-1"
    (checkpoint / "global_step1").mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"best_global_step": 1}')
    shard = checkpoint / "global_step1" / name
    write_data_alone()
    torch.save(own, shard)
    with reading_data_alone(checkpoint, of_deepspeed=True):
        found = TorchCheckpointEngine().load(str(shard))
        assert found["stage"] == ZeroStageEnum(2) and found["ones"].sum() == 2
        torch.save({**own, "x": Code(mark)}, shard)
        with pytest.raises(ModelError, match="holds more than data"), reading_data_alone(None, of_deepspeed=True):
            TorchCheckpointEngine().load(str(shard))
    with pytest.raises(ModelError, match=name), reading_data_alone(checkpoint, of_deepspeed=True):
        pass
    assert not mark.exists()
    TorchCheckpointEngine().load(str(shard))
    assert mark.exists()  # as it is outside


def arrow_of_code(folder: Path, mark: Path) -> None:
    """Columns of a class that isn't one of datasets', and files of windows that are pickles."""
    info, state = folder / "dataset_info.json", folder / "state.json"
    name = module(folder, mark)
    info.write_text(json.dumps({"features": {"input_ids": {"_type": f"{name}.Own"}}, "builder_name": name}))
    torch.save(Code(mark), folder / "x.arrow")
    state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": "x.arrow"}]}))


def files_of_code(folder: Path, mark: Path) -> None:
    torch.save(Code(mark), folder / "x.arrow")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": "x.arrow"}]}))


def format_of_code(folder: Path, mark: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_format_type": module(folder, mark)}))


HANDED: dict[str, Poison] = {"columns": arrow_of_code, "files": files_of_code, "format": format_of_code}


@pytest.mark.parametrize("name", HANDED)
def test_windows(name: str, prepared: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(prepared, tmp_path / "prepared")
    folder = tmp_path / "prepared" / "data" / "train" / "windows"
    HANDED[name](folder, mark)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(HandoffError, match="windows is damaged"):
        run.main(words(tmp_path / "prepared", tmp_path / "out", "false"))
    assert not mark.exists()


def test_descriptions_of_data(prepared: Path, mark: Path, tmp_path: Path) -> None:
    """A loading script beside the rows, and YAML that would call."""
    rows = tmp_path / "rows"
    rows.mkdir()
    module(rows, mark, "rows")
    call = f"!!python/object/apply:pathlib.Path.write_text [{mark}, ran]\n"
    (rows / "MLTable").write_text(call)
    task, model = ["--task", "question_answering"], str(prepared / "model")
    ends = ["--model_selector_output", model, "--output_dir", str(tmp_path / "out")]
    for given in (["--dataset_name", str(rows)], ["--train_mltable_path", str(rows)]):
        with pytest.raises(DataError):
            preprocess.main([*task, *given, *ends])
    (rows / "README.md").write_text(f"---\nconfigs: {call}---\n")
    with pytest.raises(DataError):
        preprocess.main([*task, "--dataset_name", str(rows), *ends])
    assert not mark.exists()


def test_a_config_of_deepspeed(prepared: Path, mark: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "zero.json").write_text(f"!!python/object/apply:pathlib.Path.write_text [{mark}, ran]\n")
    given = {"apply_deepspeed": "true", "deepspeed": tmp_path / "zero.json"}
    with pytest.raises(ParameterError):
        run.main(finetune_words(prepared, tmp_path / "run", **given))
    assert not mark.exists()
