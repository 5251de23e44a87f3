"""How an encoder-decoder is told the languages, and what stands around the text that its decoder writes.

Families differ (T5's prefix, Marian's >>fr<<, mBART's code behind a text, M2M100's and NLLB's before it). What can be
seen in the tokens that a tokenizer puts around a text is read off them and not off the name of the family.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from finetune.core.console import some
from finetune.core.errors import Fault, ModelError, ParameterError
from finetune.params.schema import did_you_mean

_CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]+")  # of mBART and NLLB: en_XX, eng_Latn
_TOLD = Lock()
PREFIXED = ("t5",)  # model types that were pretrained with "translate English to German: " before a source


class Framing(NamedTuple):
    """The tokens that a decoder begins with."""

    start: int  # what its input begins with, and is never predicted
    forced: int | None  # what every target begins with, so that it is not chosen; None where that is text


def known_languages(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Return the codes of a multilingual tokenizer, those of targets where the two differ; none of any other."""
    given: Any = tokenizer
    codes = [*vars(given).get("lang_code_to_id", {}), *vars(given).get("supported_language_codes", [])]
    if not codes and hasattr(given, "src_lang"):
        codes = [token for token in given.get_vocab() if _CODE.fullmatch(token)]
    return tuple(sorted(code.strip("<>") for code in codes))


def refuse_unknown(tokenizer: PreTrainedTokenizerFast, languages: dict[str, str]) -> None:
    """Raise ParameterError for each language, by its parameter, that a multilingual tokenizer doesn't know."""
    known = known_languages(tokenizer)
    both = hasattr(tokenizer, "src_lang")  # Marian is told the target alone
    faults = []
    for name, code in languages.items():
        if known and code not in known and (both or name == "target_lang"):
            begins = [other for other in known if other.partition("_")[0] == code or other.startswith(f"{code}_")]
            near = f"; did you mean {begins[0]}?" if len(begins) == 1 else did_you_mean(code, known)
            column = name.replace("lang", "key")
            fix = f"--{name} CODE, and --{column} {code} where the column is called so"
            why = f"it knows {some(known)}"
            faults.append(Fault(f"--{name} {code!r} is no language of the model{near}", why=why, fix=fix))
    if faults:
        raise ParameterError(*faults)


def set_languages(tokenizer: PreTrainedTokenizerFast, source: str, target: str) -> None:
    """Tell a multilingual tokenizer the languages; Marian reads its own in the prefix."""
    if hasattr(tokenizer, "src_lang") and known_languages(tokenizer):
        # By setattr, as it is a property that lays other tokens around the text.
        tokenizer.tgt_lang = target
        tokenizer.src_lang = source


def set_one_language(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a multilingual tokenizer write in the language that it reads by itself."""
    if hasattr(tokenizer, "src_lang"):
        set_languages(tokenizer, tokenizer.src_lang, tokenizer.src_lang)


@contextmanager
def told(tokenizer: PreTrainedTokenizerFast, source: str, target: str) -> Iterator[None]:
    """Tell a tokenizer the languages for a while: requests of other languages, in other threads, wait."""
    with _TOLD:
        set_languages(tokenizer, source, target)
        yield


def own_prefix(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, source: str, target: str) -> str:
    """Return the text that this model expects before a source: what its config names, or what its family was trained
    with; "" for most."""
    tasks = config.to_dict().get("task_specific_params") or {}
    named = tasks.get(f"translation_{source}_to_{target}", {}).get("prefix")
    if named is not None:
        return str(named)
    if config.model_type in PREFIXED and not hasattr(tokenizer, "src_lang"):
        names = english_names()
        if source in names and target in names:
            return f"translate {names[source]} to {names[target]}: "
    if not hasattr(tokenizer, "src_lang") and target in known_languages(tokenizer):
        return f">>{target}<< "
    return ""


def english_names() -> dict[str, str]:
    """Return the English names of a hundred languages by their ISO codes, as transformers has them for Whisper."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return {code: name.title() for code, name in LANGUAGES.items()}


def target_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each target, with what the tokenizer puts around one."""
    return tokenizer(text_target=list(texts))["input_ids"] if texts else []


def find_framing(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Framing:
    """Return how targets begin; the languages are set. Raises: ModelError if the config doesn't say.

    The decoder's input is its target moved one place to the right, behind a token to start with. mBART starts with the
    code of the language, which its targets end with.
    """
    ids = target_ids(tokenizer, ["a"])[0]
    special = {*tokenizer.all_special_ids, *vars(tokenizer).get("lang_code_to_id", {}).values()}
    of_text = [i for i, token in enumerate(ids) if token not in special]
    if not of_text:
        raise ModelError(Fault("the tokenizer makes no token of the text 'a'", fix="copy the tokenizer's files again"))
    before, behind = ids[: of_text[0]], ids[of_text[-1] + 1 :]
    start = behind[-1] if len(behind) > 1 else config.to_dict().get("decoder_start_token_id")
    if start is None:
        why = "its config has no decoder_start_token_id"
        fix = "add it to config.json: pad_token_id for T5 and Marian, eos_token_id for BART and its kin"
        raise ModelError(Fault("it isn't known with what the decoder begins", why=why, fix=fix))
    return Framing(int(start), before[0] if before else None)
