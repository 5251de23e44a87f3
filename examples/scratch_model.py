"""Make a small model that writes, an encoder-decoder of random weights, for demos that nothing is downloaded for.

It is a Marian, as the translation models of Helsinki-NLP are, but smaller. Its vocabulary is made from the texts of the
training rows alone.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForSeq2SeqLM, MarianConfig, PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # tokens 0, 1 and 2
HEADS = 4


def make_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, width: int = 128, layers: tuple[int, int] = (2, 2)
) -> int:
    """Write a model folder as the hub has it, and return the number of weights that training moves.

    `layers` are those of encoder and decoder. The same tokenizer gives the same folder, byte for byte.
    """
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=tokenizer.model_max_length,
        activation_function="relu",
        dropout=0.0,  # in so few steps it costs more than it brings
        scale_embedding=True,
        init_std=width**-0.5,  # so that scaled embeddings begin at a variance of 1, like the positions beside them
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def make_tokenizer(
    texts: Iterable[str], vocabulary: int, longest: int, unigram: bool = False
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of so many word pieces, for texts of `longest` tokens: byte pair encoding, or a unigram model.

    A space belongs to the word behind it.
    """
    special = [PAD, END, UNKNOWN]
    given = {"vocab_size": vocabulary, "special_tokens": special, "show_progress": False}
    if unigram:
        made, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token=UNKNOWN, **given)
    else:
        made, trainer = Tokenizer(models.BPE(unk_token=UNKNOWN)), trainers.BpeTrainer(**given)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, special.index(END))])
    names = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=longest, **names)
