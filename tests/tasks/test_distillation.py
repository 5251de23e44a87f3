"""The distance from a teacher's probabilities, by hand, with any padding; and its gradient."""

import pytest
import torch
from transformers.utils.generic import ModelOutput

from finetune.tasks.distillation import divergence
from finetune.tasks.generation import objective as writing
from finetune.tasks.question_answering import objective as qa_objective
from finetune.tasks.token_classification import objective as tc_objective


def test_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    for temperature in (1.0, 2.0):
        likely = torch.tensor(2 / temperature).exp() / (1 + torch.tensor(2 / temperature).exp())
        expected = (
            likely * (likely / (1 - likely)).log() + (1 - likely) * ((1 - likely) / likely).log()
        ) * temperature**2
        assert divergence(student, teacher, temperature).tolist() == pytest.approx([float(expected), 0.0], abs=1e-6)


def test_the_gradient_hardly_depends_on_the_temperature() -> None:
    """At high temperatures it is that of half the squared difference of the logits, less their mean, over C."""
    teacher, C = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float(), 6
    student = torch.zeros(4, C, requires_grad=True)
    divergence(student, teacher, 1000.0).sum().backward()
    assert torch.allclose(student.grad, -(teacher - teacher.mean(1, keepdim=True)) / C, atol=1e-3)


def test_spans_do_not_see_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(2, 7, generator=draw) for name in ("start_logits", "end_logits")}
    taught = {name: torch.randn(2, 7, generator=draw) for name in logits}
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    both = qa_objective.distance(ModelOutput(logits), ModelOutput(taught), {"attention_mask": mask}, 2.0)
    alone = qa_objective.distance(
        ModelOutput({name: one[1:, :4] for name, one in logits.items()}),
        ModelOutput({name: one[1:, :4] for name, one in taught.items()}),
        {"attention_mask": mask[1:, :4]},
        2.0,
    )
    assert both.isfinite().all() and float(both[1]) == pytest.approx(float(alone), abs=1e-6)


@pytest.mark.parametrize("distance", [tc_objective.distance, writing.distance])
def test_what_has_no_label_does_not_count(distance: object) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, generator=draw), torch.randn(2, 3, 5, generator=draw)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 4]])
    found = distance(ModelOutput(logits=student), ModelOutput(logits=teacher), {"labels": labels}, 2.0)  # type: ignore[operator]
    each = divergence(student, teacher, 2.0)
    assert found.tolist() == pytest.approx([float(each[0, 0] + each[0, 2]), float(each[1, 2])], abs=1e-6)


def test_classes_with_weights() -> None:
    student, teacher = torch.zeros(1, 2, 3), torch.eye(3)[None, :2]
    weights, labels = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([[0, 2]])
    outputs = ModelOutput(logits=student), ModelOutput(logits=teacher)
    found = tc_objective.distance(*outputs, {"labels": labels}, 1.0, weights)
    each = divergence(student, teacher, 1.0)[0]
    assert float(found) == pytest.approx(float(2 * each[0] + 0.5 * each[1]), abs=1e-6)
