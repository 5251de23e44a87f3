"""What writes by graphs, here by PyTorch in place of OpenVINO, writes what the model itself does.

OpenVINO's own graphs: tests/backends/graphs/test_generation.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.backends.graphs import generation
from finetune.backends.graphs.conversion import Part
from finetune.data.batches import Arrays
from finetune.models import writer as models_writer
from finetune.models.openvino import DECODER, ENCODER, IR, Opened
from finetune.models.stored import exportable
from finetune.models.writer import Writer, writer_of
from finetune.tasks.generation.objective import objective
from finetune.tasks.generation.writing import by_generation, configure
from tests.writers import how_to_write, random_writer, sources

ANSWER = by_generation(objective())


def opened(part: Part) -> Opened:
    """A module as another runtime has it: from arrays to arrays, by name."""

    def compute(given: Arrays) -> Arrays:
        assert given.keys() == part.example.keys()
        with torch.no_grad():
            found = part.module(*(torch.from_numpy(given[name]) for name in part.example))
        return {name: tensor.numpy() for name, tensor in zip(part.outputs, found, strict=True)}

    sizes = {name: enumerate(tensor.shape) for name, tensor in part.example.items()}
    empty = {name: tuple(0 if i in part.free[name] else n for i, n in of if i) for name, of in sizes.items()}
    return Opened(tuple(part.example), compute, empty)


def in_pytorch(model: Any) -> Writer:
    return writer_of(model.config, [opened(part) for part in generation.parts_of(model).values()])


@pytest.fixture(scope="module", params=exportable.WRITERS)
def model(request: pytest.FixtureRequest) -> Any:
    return random_writer(request.param)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("texts", [1, 4])
def test_it_writes_what_the_model_does(model: Any, texts: int, beams: int) -> None:
    """Texts of other lengths together, or one alone, greedily and by beams, with the same account of each token."""
    state = how_to_write(model, beams)
    configure(model, state)  # as a model is loaded; most of these texts end at max_target_length
    with torch.no_grad():
        expected, found = (ANSWER(one, sources(texts, 13), state) for one in (model, in_pytorch(model)))
    assert torch.equal(found["tokens"], expected["tokens"])
    assert len(expected["log_probability"].unique()) == texts  # it reads what it is given
    for name in ("log_probability", "score", "margin"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)


def test_a_first_token_that_is_forced() -> None:
    model = random_writer("mbart")
    configure(model, how_to_write(model, 2, forced=7))
    with torch.no_grad():
        both = [ANSWER(one, sources(3, 9), how_to_write(model, 2, forced=7)) for one in (model, in_pytorch(model))]
    assert both[0]["tokens"][:, 0].tolist() == [7, 7, 7] and torch.equal(both[0]["tokens"], both[1]["tokens"])


def test_logits_of_a_whole_text(model: Any) -> None:
    """As the comparison after a conversion asks for them: without what was written before."""
    batch = {name: tensor for name, tensor in sources(3, 11).items() if name in ("input_ids", "attention_mask")}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(5, 400, (3, 6))
    with torch.no_grad():
        expected, found = model(**batch)["logits"], in_pytorch(model)(**batch)["logits"]
    told = batch["attention_mask"].bool() if "decoder_input_ids" not in batch else ...
    assert (found - expected)[told].norm() < 3e-5 * expected[told].norm()  # of a T5, whose logits are large


def test_the_source_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the tokens before a step are not computed again."""
    model = random_writer("t5")
    writer = in_pytorch(model)
    reads: list[Any] = []
    widths: list[int] = []
    step, read = writer._step, writer._read

    def noted(given: dict[str, torch.Tensor], *more: Any) -> Any:
        widths.append(given["decoder_input_ids"].shape[1])
        return step(given, *more)

    monkeypatch.setattr(writer, "_read", lambda *given: (reads.append(given), read(*given))[1])
    monkeypatch.setattr(writer, "_step", noted)
    with torch.no_grad():
        ANSWER(writer, sources(2, 9), how_to_write(model, 1))
    assert len(reads) == 1 and set(widths) == {1} and len(widths) == 1 + 12


@pytest.mark.parametrize(("family", "files"), [("bart", [ENCODER, DECODER]), ("gpt2", [IR])])
def test_the_files_of_a_folder(family: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def open_one(path: Path, *given: Any) -> Opened:
        seen.append((path, *given))
        return Opened((), lambda _: {})

    monkeypatch.setattr(models_writer, "open_openvino", open_one)
    random_writer(family).config.save_pretrained(tmp_path)
    writer = models_writer.open_writer(tmp_path, 3)
    assert seen == [(tmp_path / name, 3) for name in files]
    assert (writer.device.type, writer.dtype, list(writer.parameters())) == ("cpu", torch.float32, [])
