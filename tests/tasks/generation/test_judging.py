"""What is said of tokens one after another is what all their logits say together."""

import pytest
import torch

from finetune.tasks.generation.judging import Greedy, Judgement

TEXTS, TOKENS, WORDS = 5, 7, 11
ENDS = [3, 8]


def random_logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(TEXTS, TOKENS, WORDS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("never_empty", [False, True])
@pytest.mark.parametrize("forced", [0, 1])
def test_equal_to_all_logits_together(forced: int, never_empty: bool, seed: int) -> None:
    logits = random_logits(seed)
    greedy = Greedy(Judgement(TEXTS, torch.tensor(ENDS), forced, never_empty))
    choices = [greedy(None, logits[:, place]).argmax(1) for place in range(TOKENS)]
    tokens = torch.stack(choices, 1)
    found = greedy.judgement.reduced()
    probabilities = logits.log_softmax(2)
    for text in range(TEXTS):
        ending = [place for place in range(TOKENS) if tokens[text, place] in ENDS]
        counted = range(forced, ending[0] + 1 if ending else TOKENS)
        own = [float(probabilities[text, place, tokens[text, place]]) for place in counted]
        margins = []
        for place in counted:
            others = [
                float(logits[text, place, word])
                for word in range(WORDS)
                if word != tokens[text, place] and not (never_empty and place == forced and word in ENDS)
            ]
            margins.append(float(logits[text, place, tokens[text, place]]) - max(others))
        assert float(found["log_probability"][text]) == pytest.approx(sum(own), abs=1e-4)
        assert float(found["score"][text]) == pytest.approx(sum(own) / max(1, len(own)), abs=1e-5)
        empty = float(probabilities[text, forced, ENDS].exp().sum().log())
        assert float(found["empty"][text]) == pytest.approx(empty, abs=1e-5)
        assert float(found["margin"][text]) == pytest.approx(min(margins, default=float("inf")), abs=1e-5)
        assert not (never_empty and tokens[text, forced] in ENDS)


def test_what_follows_an_end_is_left_out() -> None:
    """One text ends with its second token, the other goes on: `generate` pads the first meanwhile."""
    logits = random_logits(0)[:2]
    tokens = torch.tensor([[1, 3, 0, 0, 0, 0, 0], [1, 2, 4, 5, 6, 7, 9]])
    end = torch.tensor([3])
    together, alone = Judgement(2, end, 0, False), Judgement(1, end, 0, False)
    for place in range(TOKENS):
        together.add(logits[:, place], tokens[:, place])
        if place < 2:
            alone.add(logits[:1, place], tokens[:1, place])
    both, first = together.reduced(), alone.reduced()
    assert all(torch.equal(both[name][:1], first[name]) for name in first)
