"""In what a forward pass is computed."""

import pytest
import torch

from finetune.models.prediction import autocast_for


@pytest.mark.parametrize(
    ("precision", "computed_in"), [("32", torch.float32), ("bf16", torch.bfloat16), ("16", torch.float16)]
)
def test_the_precision_of_a_product(precision: str, computed_in: torch.dtype) -> None:
    with autocast_for(precision, "cpu")():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == computed_in


def test_cudnn_makes_no_plan_for_each_size_of_a_batch() -> None:
    assert not torch.backends.cuda.cudnn_sdp_enabled()
