"""Load tokenizers from local folders, and find how long a window may be."""

import inspect
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from finetune.core.errors import Fault, ModelError, first_line
from finetune.models.stored import intact
from finetune.models.stored.configs import architecture, load_config
from finetune.models.stored.intact import CONFIG
from finetune.tasks.task import Imported, State, Task
from finetune.tasks.tokenizers import set_space_before_words

# Model types that number positions from pad_token_id + 1.
POSITIONS_FROM_PADDING = frozenset(
    [
        "camembert",
        "data2vec-text",
        "ibert",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)


NO_LIMIT = 100_000  # tokenizers without a limit of their own say 1e30


def load_tokenizer(folder: Path, task: Task[State]) -> PreTrainedTokenizerFast:
    """Return the tokenizer, a fast one where the task is `aligned`.

    Raises: ModelError if there is none, or it can't map tokens to words and characters where the task asks for that, or
    knows no word, or has tokens that the model beside it has no embedding for.
    """
    intact.raise_all(intact.tokenizer_faults(folder))
    config = load_config(folder) if (folder / CONFIG).is_file() else None  # which the tokenizer's class is looked up by
    tokenizer = saved_tokenizer(folder, task)
    refuse_misfit(folder, tokenizer, config)
    if config is not None:
        leave_out_token_types(tokenizer, config, task)
    return tokenizer


def saved_tokenizer(folder: Path, task: Task[State]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a model that we saved, which `load_tokenizer` fitted to it: no model class is looked up.

    Raises: ModelError if there is none, or it isn't a fast one and the task is `aligned`.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each family has its own code here, which takes what it finds
        why, fix = f"{type(error).__name__}: {first_line(error)}", "copy the tokenizer's files again"
        raise ModelError(Fault(f"{folder} has no tokenizer that loads", why=why, fix=fix)) from None
    if task.data.aligned and not tokenizer.is_fast:
        why = "only fast tokenizers say which word and which characters a token stands for"
        raise ModelError(Fault(f"{folder}: {type(tokenizer).__name__} is not a fast tokenizer", why=why))
    tokenizer.truncation_side = "right"  # windows follow one another from the left
    tokenizer.padding_side = "right"  # GPT-2's positions begin at the left, and no causal model looks to the right
    if tokenizer.pad_token_id is None:
        # Masked, so that any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if task.data.pretokenized:
        set_space_before_words(tokenizer)
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


def imported(folder: Path, task: Task[State]) -> Imported:
    """Return what encoding needs of the model in the folder. Raises: ModelError."""
    tokenizer, config = load_tokenizer(folder, task), load_config(folder)
    return Imported(config, tokenizer, longest_window(config, tokenizer))


def refuse_misfit(folder: Path, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig | None) -> None:
    """Raise ModelError if the tokenizer knows no word, or the model has no embedding for some of its tokens."""
    special, vocabulary = set(tokenizer.all_special_tokens), tokenizer.get_vocab()
    around = (tokenizer.cls_token, tokenizer.sep_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    seen = {token: id_ for token, id_ in vocabulary.items() if token not in special}
    seen |= {str(token): vocabulary[str(token)] for token in (*around, tokenizer.pad_token) if token in vocabulary}
    rows = config.get_text_config().to_dict().get("vocab_size") if config is not None else None
    intact.refuse_misfit(folder, seen, len(vocabulary.keys() - special - set(tokenizer.added_tokens_encoder)), rows)


def leave_out_token_types(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, task: Task[State]) -> None:
    """Leave out the token types that a model has no embedding for: DistilBERT or RoBERTa with BERT's tokenizer."""
    architecture(task, config)
    known = inspect.signature(task.model.families[type(config)].forward).parameters
    if "token_type_ids" not in known or config.to_dict().get("type_vocab_size") == 1:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = names
        tokenizer.init_kwargs["model_input_names"] = names  # it is saved with these


def longest_window(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the model's true maximum in tokens: the smaller of its position table and the tokenizer's own limit.

    RoBERTa and its kin count positions from padding_idx + 1. Models with relative positions have no table: 512 unless
    the tokenizer knows better.
    """
    values = config.get_text_config().to_dict()
    table = next(
        (values[k] for k in ("max_position_embeddings", "n_positions", "max_sequence_length") if values.get(k)), None
    )
    if table and config.model_type in POSITIONS_FROM_PADDING:
        table -= config.pad_token_id + 1
    own = tokenizer.model_max_length if tokenizer.model_max_length < NO_LIMIT else None
    limits = [limit for limit in (table, own) if limit and limit > 0]
    return int(min(limits)) if limits else 512
