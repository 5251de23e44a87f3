"""Weights that aren't those that were saved are refused by whoever reads them; what a user may edit is told of."""

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from finetune import evaluation, export, model_selector, preprocess, run
from finetune.core.errors import ModelError
from finetune.models.stored import sums
from tests.broken_models import build_unmerged
from tests.conftest import finetune_words, sample_rows, write_jsonl

TASK = ["--task", "question_answering"]


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `pytorch` and `mlflow` of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    run.main(finetune_words(prepared, folder, max_steps=1, per_device_eval_batch_size=16))
    return folder


def flip(path: Path, seed: int = 1) -> None:
    """Turn over one bit in the last quarter, where there are numbers alone."""
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content) * 3 // 4, len(content))] ^= 4
    path.write_bytes(content)


def edit(path: Path) -> None:
    """Add white space to a text."""
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


def readers(made: Path, prepared: Path, out: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Whoever reads a model: the folder that it is given, and how it is begun."""
    data, pytorch, served = prepared / "data", made / "trained" / "pytorch", made / "trained" / "mlflow"
    rows = write_jsonl(made / "rows.jsonl", sample_rows("test")[:2])
    score = [*TASK, "--test_data", str(rows), "--evaluation_result", str(out / "scores")]
    imported = [*TASK, "--output_dir", str(out / "imported")]
    convert = ["--preprocess_output", str(data), "--openvino_model_folder", str(out / "openvino")]
    taught = finetune_words(prepared, out, max_steps=1, teacher_model_path=pytorch)
    of_pytorch, of_mlflow = ["--pytorch_model_folder", str(pytorch)], ["--mlflow_model_folder", str(served)]
    from_pytorch, from_mlflow = ["--pytorch_model_path", str(pytorch)], ["--mlflow_model_path", str(served)]
    return {
        "finetune": (made / "model", lambda: run.main(finetune_words(made, out, max_steps=1))),
        "teacher": (pytorch, lambda: run.main(taught)),
        "evaluation": (pytorch, lambda: evaluation.main([*score, *of_pytorch])),
        "evaluation of MLflow": (served, lambda: evaluation.main([*score, *of_mlflow])),
        "import": (pytorch, lambda: model_selector.main([*imported, *from_pytorch])),
        "import of MLflow": (served, lambda: model_selector.main([*imported, *from_mlflow])),
        "export": (pytorch, lambda: export.main([*convert, *of_pytorch])),
        "serving": (served, lambda: mlflow.pyfunc.load_model(str(served))),
    }


READERS = (
    "finetune", "teacher", "evaluation", "evaluation of MLflow", "import", "import of MLflow", "export", "serving",
)  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_damaged_weights_are_refused_by_name(
    reader: str, trained: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever reads them, with what to do; without the checksums they would be taken."""
    monkeypatch.setattr(export, "require_packages", lambda params: None)
    for name in ("model", "data"):
        shutil.copytree(prepared / name, tmp_path / "made" / name)
    shutil.copytree(trained, tmp_path / "made" / "trained")
    folder, begin = readers(tmp_path / "made", prepared, tmp_path / "out")[reader]
    weights = next(path for path in folder.rglob("model.safetensors") if "checkpoint" not in str(path))
    flip(weights)
    with pytest.raises(ModelError) as caught:
        begin()
    assert f"{weights} is damaged" in str(caught.value) and f"remove {weights.parent / sums.SUMS}" in str(caught.value)
    if reader == "evaluation":  # that is the only thing that is wrong with it
        (weights.parent / sums.SUMS).unlink()
        begin()


def test_what_a_user_may_edit_is_told_of(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config or a tokenizer that was changed on purpose, or not, is taken."""
    for name in ("model", "data"):
        shutil.copytree(prepared / name, tmp_path / name)
    edit(tmp_path / "model" / "model" / "config.json")
    (tmp_path / "model" / "model" / "more.txt").write_text("added")
    words = ["--model_selector_output", str(tmp_path / "model"), "--output_dir", str(tmp_path / "again")]
    files = [(f"--{split}_file_path", str(prepared / f"{split}.jsonl")) for split in ("train", "validation", "test")]
    preprocess.main([*TASK, *words, *(word for pair in files for word in pair)])
    told = f"note: config.json of {tmp_path / 'model' / 'model'}: not as saved with the model, by SHA256SUMS"
    assert capsys.readouterr().out.count(told) == 1
    sums.refuse_damaged(tmp_path / "model" / "model")
    assert capsys.readouterr().out.count(told) == 1


def test_the_list_is_that_of_sha256sum(trained: Path, prepared: Path, tmp_path: Path) -> None:
    """Coreutils agrees, and finds what we find."""
    for folder in (prepared / "model" / "model", trained / "pytorch", trained / "mlflow" / "artifacts" / "model"):
        listed = {line.partition("  ")[2] for line in (folder / sums.SUMS).read_text().splitlines()}
        there = {path.name for path in folder.iterdir() if path.is_file()} - {"README.md", "training.json"}
        of_the_run = {"SHA256SUMS", "resolved_config.yaml", "written_by_finetune.json", "mlflow.db"}
        assert listed == there - of_the_run and {"config.json", "model.safetensors", "tokenizer.json"} <= listed
        checked = subprocess.run(
            ["sha256sum", "-c", sums.SUMS], cwd=folder, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        sums.refuse_damaged(folder)


def test_adapters_and_the_model_below_them(tiny_model: Path, tmp_path: Path) -> None:
    folder = build_unmerged(tiny_model, tmp_path / "unmerged")
    sums.refuse_damaged(folder)
    words = ["--task", "token_classification", "--pytorch_model_path", str(folder), "--output_dir", str(tmp_path / "o")]
    for name in ("adapter_model.safetensors", "base_model/model.safetensors"):
        before = (folder / name).read_bytes()
        flip(folder / name)
        with pytest.raises(ModelError, match=f"{name} is damaged"):
            model_selector.main(words)
        (folder / name).write_bytes(before)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ""),
        ("nonsense\n", "has no checksum and name in line 1: what it lists there is not verified"),
        (f"{'0' * 64}  ../model.safetensors\n", "has no checksum and name in line 1"),
        (f"{'0' * 64}  /etc/hostname\n", "has no checksum and name in line 1"),
        (f"{'0' * 64}  gone.safetensors\n", ""),
        (b"\xff\xfe\xff", "can't be read"),
    ],
)
def test_a_list_that_vouches_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes, told: str
) -> None:
    """It is told of, and refuses nothing; nothing outside of the folder is looked at."""
    (tmp_path / "model").mkdir()
    for place in (tmp_path, tmp_path / "model"):
        (place / "model.safetensors").write_bytes(b"w")
    (tmp_path / "model" / sums.SUMS).write_bytes(text.encode() if isinstance(text, str) else text)
    sums.refuse_damaged(tmp_path / "model")
    said = capsys.readouterr().out
    assert (told in said and sums.SUMS in said) if told else said == ""
    shutil.rmtree(tmp_path / "model")
    sums.refuse_damaged(tmp_path)  # without a list there is nothing to say
    assert capsys.readouterr().out == ""
