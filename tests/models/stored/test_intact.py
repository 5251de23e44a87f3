"""A model is whole or refused: broken folders at the command lines that take one, and real layouts that pass."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import evaluation, model_selector, preprocess, run
from finetune.core.errors import ModelError
from finetune.models.stored import intact
from tests.broken_models import ADAPTERS, INDEX, MODELS, WEIGHTS, Break, build_unmerged
from tests.conftest import ROOT, finetune_words, sample_rows, write_jsonl
from tests.families import FAMILIES, OTHERS, build_family

TAGS = ["--task", "token_classification"]
SECONDS = 10
DOWNLOADED = ROOT / "models" / "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def unmerged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_unmerged(tiny_model, tmp_path_factory.mktemp("unmerged") / "model")


def broken(good: Path, folder: Path, damage: Break) -> Path:
    shutil.copytree(good, folder)
    damage(folder)
    return folder


def refused(start: Callable[[], None], part: str) -> None:
    """It ends in time with a model error that says the part, and what to do."""
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        start()
    assert time.monotonic() - began < SECONDS
    assert part in str(caught.value)
    assert all(fault.why and fault.fix for fault in caught.value.faults), str(caught.value)


def imported(folder: Path, output: Path) -> None:
    model_selector.main([*TAGS, "--pytorch_model_path", str(folder), "--output_dir", str(output)])


def evaluated(folder: Path, output: Path, rows: Path) -> None:
    words = ["--test_data", str(rows), "--pytorch_model_folder", str(folder), "--evaluation_result", str(output)]
    evaluation.main([*TAGS, *words])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", sample_rows("test", TAGS[1])[:2])


@pytest.mark.parametrize("name", MODELS)
def test_broken_models(name: str, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    damage, part = MODELS[name]
    folder = broken(tiny_model, tmp_path / "model", damage)
    refused(lambda: imported(folder, tmp_path / "imported"), part)
    refused(lambda: evaluated(folder, tmp_path / "result", rows), part)
    assert not (tmp_path / "imported" / "model_selector_args.json").exists()


@pytest.mark.parametrize("name", ADAPTERS)
def test_broken_adapters(name: str, unmerged: Path, rows: Path, tmp_path: Path) -> None:
    damage, part = ADAPTERS[name]
    folder = broken(unmerged, tmp_path / "model", damage)
    refused(lambda: imported(folder, tmp_path / "imported"), part)
    refused(lambda: evaluated(folder, tmp_path / "result", rows), part)


@pytest.mark.parametrize("name", ["no vocabulary", "weights cut off", "a size as text"])
def test_broken_between_steps(name: str, prepared: Path, tmp_path: Path) -> None:
    """What model import has written is looked at again by those that read it."""
    damage, part = MODELS[name]
    shutil.copytree(prepared, tmp_path / "prepared")
    model = tmp_path / "prepared" / "model"
    damage(model / "model")
    refused(lambda: run.main(finetune_words(tmp_path / "prepared", tmp_path / "out")), part)
    file = str(tmp_path / "prepared" / "train.jsonl")
    words = ["--task", "question_answering", "--train_file_path", file, "--model_selector_output", str(model)]
    refused(lambda: preprocess.main([*words, "--output_dir", str(tmp_path / "again")]), part)


def test_broken_inside_mlflow(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mlflow" / "artifacts" / "model"
    broken(tiny_model, folder, MODELS["weights cut off"][0])
    words = ["--mlflow_model_path", str(tmp_path / "mlflow"), "--output_dir", str(tmp_path / "imported")]
    refused(lambda: model_selector.main([*TAGS, *words]), "cut off")
    words = ["--mlflow_model_folder", str(tmp_path / "mlflow"), "--evaluation_result", str(tmp_path / "result")]
    refused(lambda: evaluation.main([*TAGS, "--test_data", str(rows), *words]), "cut off")


def test_everything_that_is_wrong_at_once(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for name in ("no vocabulary", "no heads", "weights cut off", "quantised"):
        MODELS[name][0](folder)
    with pytest.raises(ModelError) as caught:
        intact.refuse_broken(folder)
    assert len(caught.value.faults) == 4


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_whole_models_of_every_family(family: str, tmp_path: Path) -> None:
    intact.refuse_broken(build_family(family, tmp_path))


def test_whole_models_as_they_are_found(tiny_model: Path, unmerged: Path, tmp_path: Path) -> None:
    """Unmerged, in shards, as the hub's cache keeps them, and one that was downloaded."""
    intact.refuse_broken(unmerged)
    cache = tmp_path / "models--x--y"
    (cache / "snapshots" / "1").mkdir(parents=True)
    shutil.copytree(tiny_model, cache / "blobs")
    for path in (cache / "blobs").iterdir():
        (cache / "snapshots" / "1" / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    folder = cache / "snapshots" / "1"
    weights = dict.fromkeys(intact.header(folder / WEIGHTS), WEIGHTS)
    (folder / INDEX).write_text(json.dumps({"weight_map": weights}))
    intact.refuse_broken(folder)
    if DOWNLOADED.is_dir():
        intact.refuse_broken(DOWNLOADED)


def test_without_torch() -> None:
    """The look takes no time that is worth mentioning."""
    code = "import sys, finetune.models.stored.intact; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
