"""The logits of OpenVINO and ONNX Runtime are PyTorch's, for each family and head, at shapes that were no example."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

from finetune.backends import runtimes
from finetune.backends.called import as_model
from finetune.backends.graphs import conversion, quantise
from finetune.backends.graphs.conversion import Part
from finetune.core.errors import ModelError, UnsupportedError
from finetune.data.batches import Arrays, Batch
from finetune.models import blocks
from finetune.models.openvino import IR, open_openvino
from tests.families import FAMILIES, SIZES

compression = pytest.mark.compression
WORDS, PADDING = 500, 1
IR_WEIGHTS, ONNX, ONNX_INT8 = "openvino_model.bin", "model.onnx", "model_int8.onnx"
MPNET = ("MPNetConfig", "wordpiece", "MPNetTokenizer", {**SIZES, "max_position_embeddings": 162})
CONFIGS = {
    name: ({**FAMILIES, "mpnet": MPNET}[name][0], {**FAMILIES, "mpnet": MPNET}[name][3])
    for name in ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
}
HEADS = {"question_answering": AutoModelForQuestionAnswering, "token_classification": AutoModelForTokenClassification}
WITH_TYPES = ("bert", "electra")  # the others have no embedding for token types


def random_model(family: str, task: str) -> Any:
    """A tiny model of random weights, larger than those of pretraining: logits of about 1."""
    name, values = CONFIGS[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(vocab_size=WORDS, pad_token_id=PADDING, initializer_range=0.2, **values)
    config.num_labels = 5 if task == "token_classification" else 2
    return HEADS[task].from_config(config).eval()


def windows(family: str, count: int, length: int) -> Batch:
    """Random windows, each but the first shorter than the one before, and padded."""
    made = torch.randint(5, WORDS, (count, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(count, length, dtype=torch.long)
    for i in range(count):
        mask[i, length - i * length // (count + 1) :] = 0
    batch = {"input_ids": made.where(mask == 1, PADDING), "attention_mask": mask}
    if family in WITH_TYPES:
        batch["token_type_ids"] = (torch.arange(length) > length // 3).long().expand(count, length) * mask
    return batch


def part(model: Any, family: str) -> Part:
    return conversion.parts_of(model, windows(family, 2, 11))[conversion.MODEL]


def others(family: str) -> list[Batch]:
    return [windows(family, *shape) for shape in ((1, 1), (1, 7), (3, 61), (5, 160))]


@compression
@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("family", CONFIGS)
def test_openvino_computes_the_same(openvino: Any, family: str, task: str, tmp_path: Path) -> None:
    model = random_model(family, task)
    openvino.save_model(conversion.to_openvino(part(model, family)), tmp_path / IR, compress_to_fp16=False)
    opened = open_openvino(tmp_path / IR, 1)
    assert set(opened.inputs) == windows(family, 1, 2).keys()
    found = conversion.distance(as_model(opened), model, others(family))
    assert found < 2e-5 and not model.training
    conversion.refuse_other_logits(family, found)


@compression
@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet"])
def test_openvino_computes_what_a_pruned_model_does(openvino: Any, family: str, tmp_path: Path) -> None:
    """Layers of other widths, and MPNet's bias for the heads that are left."""
    model = random_model(family, "question_answering")
    blocks.cut(model, [((1,), range(0, 64, 3)), ((0,), range(40))])
    converted = conversion.to_openvino(part(model, family))
    openvino.save_model(converted, tmp_path / IR, compress_to_fp16=False)
    opened = as_model(open_openvino(tmp_path / IR, 1))
    assert conversion.distance(opened, model, others(family)) < 2e-5


@compression
@pytest.mark.parametrize(
    ("family", "task"),
    [(family, task) for i, family in enumerate(CONFIGS) for task in (list(HEADS)[i % 2],)],
)
def test_onnx_runtime_computes_the_same(onnxruntime: Any, family: str, task: str, tmp_path: Path) -> None:
    model = random_model(family, task)
    conversion.to_onnx(part(model, family), tmp_path / ONNX)
    assert not model.training
    opened = runtimes.open_onnx(tmp_path / ONNX, 1)
    found = conversion.distance(as_model(opened), model, others(family))
    assert found < 2e-5
    text = (tmp_path / ONNX).read_bytes()
    assert b"site-packages" not in text and b"stack_trace" not in text and str(Path.cwd()).encode() not in text


@compression
def test_other_weights_are_noticed(openvino: Any, tmp_path: Path) -> None:
    """One weight of one layer, moved by as much as bf16 would."""
    model = random_model("bert", "question_answering")
    openvino.save_model(conversion.to_openvino(part(model, "bert")), tmp_path / IR, compress_to_fp16=False)
    opened = as_model(open_openvino(tmp_path / IR, 1))
    assert conversion.distance(opened, model, others("bert")) < conversion.PARITY
    with torch.no_grad():
        model.qa_outputs.bias[0] += 0.01
    found = conversion.distance(opened, model, others("bert"))
    with pytest.raises(ModelError, match="OpenVINO is not the model that was trained"):
        conversion.refuse_other_logits("OpenVINO", found)


def test_what_is_no_number_is_no_parity() -> None:
    with pytest.raises(ModelError, match="differs by nan"):
        conversion.refuse_other_logits("OpenVINO", float("nan"))


@compression
def test_padding_is_not_compared(openvino: Any) -> None:
    """Nothing reads its logits, and runtimes may differ there."""
    batch = windows("bert", 2, 10)
    one = torch.zeros(2, 10)
    other = one.masked_fill(batch["attention_mask"] == 0, 9.0)
    models: list[Any] = [lambda logits=logits, **_: {"logits": logits} for logits in (one, other, one + 0.5)]
    assert conversion.distance(models[0], models[1], [batch]) == 0
    assert conversion.distance(models[0], models[2], [batch]) == 0.5


@compression
def test_bf16_is_not_computed_unless_asked_for(openvino: Any, tmp_path: Path) -> None:
    """Left to itself OpenVINO would, where the processor has it."""
    model = random_model("bert", "question_answering")
    openvino.save_model(conversion.to_openvino(part(model, "bert")), tmp_path / IR, compress_to_fp16=False)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    opened = as_model(open_openvino(tmp_path / IR, 1, "bf16"))
    assert conversion.distance(opened, model, others("bert")) > conversion.PARITY


@compression
@pytest.mark.parametrize("family", ["bert", "distilbert", "xlm-roberta"])
def test_int8_of_openvino(openvino: Any, family: str, tmp_path: Path) -> None:
    """A quarter of the bytes, and logits that go the same way."""
    pytest.importorskip("nncf", reason='pip install ".[compression]"')
    model = random_model(family, "token_classification")
    converted = conversion.to_openvino(part(model, family))
    quantised = quantise.by_nncf(converted, calibration(family))
    sizes = []
    for name, one in (("fp32", converted), ("int8", quantised)):
        (tmp_path / name).mkdir()
        openvino.save_model(one, tmp_path / name / IR, compress_to_fp16=False)
        sizes.append((tmp_path / name / IR_WEIGHTS).stat().st_size)
    assert sizes[1] < 0.4 * sizes[0]
    assert 'subset_size value="24"' in (tmp_path / "int8" / IR).read_text()
    like_pytorch(as_model(open_openvino(tmp_path / "int8" / IR, 1)), model, family)


@compression
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_int8_of_onnx_runtime(onnxruntime: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    model = random_model(family, "token_classification")
    conversion.to_onnx(part(model, family), tmp_path / ONNX)
    quantise.by_onnxruntime(tmp_path / ONNX, calibration(family), tmp_path / ONNX_INT8)
    sizes = [(tmp_path / name).stat().st_size for name in (ONNX, ONNX_INT8)]
    assert sizes[1] < 0.6 * sizes[0]  # the nodes take as much as the weights of so small a model
    like_pytorch(as_model(runtimes.open_onnx(tmp_path / ONNX_INT8, 1)), model, family)
    assert not list((tmp_path / "working").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"working", ONNX, ONNX_INT8}


def calibration(family: str) -> list[Arrays]:
    batches = [windows(family, 1, length) for length in range(20, 44)]
    return [{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches]


def like_pytorch(quantised: Any, model: Any, family: str) -> None:
    batch = windows(family, 3, 61)
    told = batch["attention_mask"].bool()
    with torch.no_grad():
        pair = [one(**batch)["logits"][told].flatten().numpy() for one in (quantised, model)]
    assert 0.97 < np.corrcoef(*pair)[0, 1] < 0.999999


@compression
def test_a_graph_that_is_cut_off(openvino: Any, onnxruntime: Any, tmp_path: Path) -> None:
    (tmp_path / IR).write_text("<net")
    (tmp_path / IR_WEIGHTS).touch()
    (tmp_path / ONNX).write_bytes(b"\x08\x0a")
    with pytest.raises(ModelError, match=r"openvino_model.xml can't be loaded"):
        open_openvino(tmp_path / IR, 1)
    with pytest.raises(ModelError, match=r"model.onnx can't be loaded"):
        runtimes.open_onnx(tmp_path / ONNX, 1)


@compression
def test_weights_that_one_file_cannot_hold(onnxruntime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("bert", "question_answering")
    monkeypatch.setattr(conversion, "LARGEST_ONNX", 1000)
    with pytest.raises(UnsupportedError, match="--onnx true for this model"):
        conversion.to_onnx(part(model, "bert"), tmp_path / ONNX)
