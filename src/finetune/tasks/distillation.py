"""How far the probabilities of a model are from those of its teacher (Hinton et al. 2015)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def divergence(student: "torch.Tensor", teacher: "torch.Tensor", temperature: float) -> "torch.Tensor":
    """Return (N,) fp32 of logits (N, C): the Kullback-Leibler divergence of distributions, times temperature^2.

    The logits of both are divided by the temperature; its square keeps the size of the gradient.
    """
    from torch.nn import functional

    log_student, log_teacher = (functional.log_softmax(one.float() / temperature, -1) for one in (student, teacher))
    each = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return each.sum(-1) * temperature**2
