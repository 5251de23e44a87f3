"""What logits say of the tokens that are chosen by them. B texts, E tokens that end a text, V in the vocabulary.

It is kept as a few numbers for each text, token by token: all logits of 16 texts of 128 tokens in a vocabulary of
256,000, as that of NLLB, would take 2 GB.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from finetune.tasks.task import Reduced


class Judgement:
    """The account of B texts, whose tokens are added one after another; what follows an end doesn't count.

    `ends` are (E,). The first `forced` tokens of a text don't count either. With `never_empty`, a text can't end with
    the one after.
    """

    def __init__(self, texts: int, ends: Tensor, forced: int, never_empty: bool) -> None:
        self.ends, self.forced, self.never_empty = ends, forced, never_empty
        self.added = 0  # tokens of each text
        self.going_on = torch.ones(texts, dtype=torch.bool, device=ends.device)
        nothing = torch.zeros(texts, device=ends.device)
        self.log_probability = self.count = self.empty = nothing
        self.margin = torch.full_like(nothing, torch.inf)

    def add(self, logits: Tensor, tokens: Tensor) -> None:
        """Add the next tokens (B,), which were chosen by logits (B, V)."""
        if self.added >= self.forced:
            place = tokens[:, None]
            own, total = logits.gather(1, place)[:, 0], logits.logsumexp(1)
            if self.added == self.forced:
                self.empty = logits[:, self.ends].logsumexp(1) - total
            others = self.choosable(logits).scatter(1, place, -torch.inf)
            self.log_probability = self.log_probability + (own - total) * self.going_on
            self.count = self.count + self.going_on
            ahead = (own - others.amax(1)).masked_fill(~self.going_on, torch.inf)
            self.margin = torch.minimum(self.margin, ahead)
        self.going_on = self.going_on & ~torch.isin(tokens, self.ends)
        self.added += 1

    def choosable(self, logits: Tensor) -> Tensor:
        """Return the logits (B, V) to choose the next token by, without ends where one would leave a text empty."""
        if self.never_empty and self.added == self.forced:
            return logits.index_fill(1, self.ends, -torch.inf)
        return logits

    def reduced(self) -> Reduced:
        """Return what is to be known, each (B,).

        log_probability of all tokens together and score, its mean; empty, the log-probability of ending at once;
        margin, by how much the logit of the least certain token beats the next one's.
        """
        score = self.log_probability / self.count.clamp(min=1)
        found = {"log_probability": self.log_probability, "score": score}
        return {**found, "empty": self.empty, "margin": self.margin}


class Greedy(LogitsProcessor):
    """The last of `generate`'s processors where it takes the best token: adds that to a judgement."""

    def __init__(self, judgement: Judgement) -> None:
        self.judgement = judgement

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits (B, V) to choose by, given float32 ones of the next token."""
        choosable = self.judgement.choosable(scores)
        self.judgement.add(scores, choosable.argmax(1))
        return choosable
