"""What each family that writes is told: languages, targets and the decoder's input; and that it writes as stock."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right

from finetune.core.errors import ModelError, ParameterError
from finetune.data.batches import Batch, as_windows, collate
from finetune.models.loading import load_model
from finetune.models.prediction import predict, predict_rows
from finetune.models.stored.configs import load_config
from finetune.models.stored.tokenizers import imported
from finetune.params.datapreprocess import TranslationPreprocessParams
from finetune.tasks.generation import framing, targets
from finetune.tasks.generation.writing import NOTHING, generation_config
from finetune.tasks.translation import TASK, pairs
from tests.writers import WRITERS, build_writer
from tests.writers import pairs as sample

FORCED = {"bart": "<s>", "mbart50": "de_DE", "m2m_100": "__de__", "nllb": "deu_Latn"}
STARTS = {"t5": "<pad>", "byt5": "<pad>", "bart": "</s>", "marian": "<pad>", "mbart": "de_DE"}


@pytest.fixture(scope="module", params=WRITERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_writer(family, tmp_path_factory.mktemp(family))


def params(family: str, **given: Any) -> TranslationPreprocessParams:
    source, target = WRITERS[family][2]
    values = {"source_lang": source, "target_lang": target, "max_target_length": 24, **given}
    return TranslationPreprocessParams(model_selector_output=Path(), output_dir=Path(), **values)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": str(i), "row": i, "source": p["en"], "target": p["tav"]} for i, p in enumerate(sample()[:count])]


def state_of(family: str, folder: Path, **given: Any) -> pairs.State:
    return pairs.fit(params(family, **given), {}, imported(folder, TASK))


def batch_of(folder: Path, state: pairs.State, count: int = 4) -> Batch:
    tokenizer = imported(folder, TASK).tokenizer
    columns = pairs.encode(rows(count), tokenizer, state)
    labels, _ = pairs.label(rows(count), columns, state)
    return collate(as_windows(columns | labels), targets.padding(tokenizer))


def test_targets_and_decoder_inputs_are_those_of_transformers(family: str, folder: Path) -> None:
    """Byte for byte: labels as the tokenizer's text_target gives them, decoder inputs as the model makes them."""
    state = state_of(family, folder, max_target_length=150)
    batch = batch_of(folder, state)
    source, target = WRITERS[family][2]
    stock: Any = AutoTokenizer.from_pretrained(folder)
    if hasattr(stock, "src_lang"):
        stock.src_lang, stock.tgt_lang = source, target
    expected = stock(text_target=[row["target"] for row in rows(4)])["input_ids"]
    assert [ids[ids != -100].tolist() for ids in batch["labels"]] == expected
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    if family == "mbart":  # whose config leaves the start to the caller
        assert state.decoder_start_token_id == stock.convert_tokens_to_ids(target)
    if family in ("m2m_100", "nllb"):
        made = shift_tokens_right(batch["labels"], model.config.pad_token_id, model.config.decoder_start_token_id)
    else:
        made = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    kept = batch["labels"] != -100
    assert torch.equal(batch["decoder_input_ids"][kept], made[kept])
    read = stock([state.prefix + row["source"] for row in rows(4)])["input_ids"]
    lengths = batch["attention_mask"].sum(1)
    assert [ids[:length].tolist() for ids, length in zip(batch["input_ids"], lengths, strict=True)] == read


def test_what_is_forced_and_what_starts(family: str, folder: Path) -> None:
    state, tokenizer = state_of(family, folder), AutoTokenizer.from_pretrained(folder)
    forced = None if state.forced_bos_token_id is None else tokenizer.convert_ids_to_tokens(state.forced_bos_token_id)
    assert forced == FORCED.get(family)
    assert tokenizer.convert_ids_to_tokens(state.decoder_start_token_id) == STARTS.get(family, "</s>")
    prefix = "translate English to German: " if family in ("t5", "byt5") else ""
    assert state.prefix == prefix


@pytest.mark.parametrize("beams", [1, 3])
def test_it_writes_as_stock_generate(family: str, folder: Path, beams: int) -> None:
    """The tokens are those of `model.generate` of the saved model, called as its users call it."""
    state = state_of(family, folder, num_beams=beams)
    model, _ = load_model(folder, TASK, state)
    batch = batch_of(folder, state)
    with torch.no_grad():
        reduced = TASK.answer(model.eval(), batch, state)
        stock: Any = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for ours, theirs in zip(reduced["tokens"], stock[:, 1:], strict=True):
        kept = ours[ours != NOTHING]
        assert kept.tolist() == theirs[: len(kept)].tolist()
        assert set(theirs[len(kept) :].tolist()) <= {model.config.pad_token_id}


def test_score_and_margin_by_hand(family: str, folder: Path) -> None:
    state = state_of(family, folder)
    model, _ = load_model(folder, TASK, state)
    batch = batch_of(folder, state, count=1)
    with torch.no_grad():
        reduced = TASK.answer(model.eval(), batch, state)
        tokens = reduced["tokens"][:, : int((reduced["tokens"] != NOTHING).sum())]
        start = torch.tensor([[state.decoder_start_token_id]])
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
        ).logits[0]
    first = 0 if state.forced_bos_token_id is None else 1
    chosen = logits.log_softmax(1)[range(tokens.shape[1]), tokens[0]][first:]
    best = logits.topk(2, dim=1).values[first:]
    assert float(reduced["score"]) == pytest.approx(float(chosen.mean()), abs=1e-5)
    assert float(reduced["margin"]) == pytest.approx(float((best[:, 0] - best[:, 1]).min()), abs=1e-4)


@pytest.mark.parametrize("family", ["mbart", "m2m_100", "nllb"], indirect=True)
def test_unknown_language(family: str, folder: Path) -> None:
    wrong = {"mbart": ("de", "de_DE"), "m2m_100": ("dee", "de"), "nllb": ("deu", "deu_Latn")}[family]
    with pytest.raises(ParameterError) as caught:
        pairs.fit(params(family, source_lang="xyz", target_lang=wrong[0]), {}, imported(folder, TASK))
    first, second = caught.value.faults
    assert first.what.startswith("--source_lang 'xyz' is no language of the model")
    assert second.what.startswith(f"--target_lang '{wrong[0]}' is no language of the model; did you mean {wrong[1]}?")
    assert "--target_key" in second.fix


@pytest.mark.parametrize(
    ("family", "other"),
    [("mbart", "fr_XX"), ("mbart50", "fr_XX"), ("m2m_100", "fr"), ("nllb", "fra_Latn")],
    indirect=["family"],
)
def test_other_languages_in_a_request(family: str, folder: Path, other: str) -> None:
    """As if the model had been trained with them; an unknown code is refused with the one that was meant."""
    state, model = state_of(family, folder, num_beams=2), imported(folder, TASK)
    assert TASK.decoding.asked(state, {"num_beams": 3}, model) == replace(state, num_beams=3)
    found = TASK.decoding.asked(state, {"target_lang": other}, model)
    assert found == state_of(family, folder, num_beams=2, target_lang=other) != state
    assert TASK.decoding.asked(state, {"source_lang": other}, model) == replace(state, source_lang=other)
    with pytest.raises(ParameterError, match=f"did you mean {other}"):
        TASK.decoding.asked(state, {"target_lang": f"{other}x"}, model)


def test_other_languages_of_a_model_without_codes(tmp_path: Path) -> None:
    folder = build_writer("t5", tmp_path)
    state, model = state_of("t5", folder), imported(folder, TASK)
    assert TASK.decoding.asked(state, {"source_lang": "en", "target_lang": "de"}, model) == state
    with pytest.raises(ParameterError, match="translates from en to de, not from en to fr"):
        TASK.decoding.asked(state, {"target_lang": "fr"}, model)


def test_other_languages_of_marian(tmp_path: Path) -> None:
    """Of several targets, which it is told before a source."""
    folder = build_writer("marian", tmp_path)
    state, model = state_of("marian", folder), imported(folder, TASK)
    model.tokenizer.supported_language_codes = [">>de<<", ">>fr<<"]
    state = replace(state, prefix=">>de<< ")
    assert TASK.decoding.asked(state, {"target_lang": "fr"}, model) == replace(
        state, target_lang="fr", prefix=">>fr<< "
    )
    own = replace(state, prefix="please: ")
    assert TASK.decoding.asked(own, {"target_lang": "fr"}, model).prefix == "please: "
    with pytest.raises(ParameterError, match="no language of the model"):
        TASK.decoding.asked(state, {"target_lang": "it"}, model)


def test_a_config_without_a_start(tmp_path: Path) -> None:
    folder = build_writer("t5", tmp_path, decoder_start_token_id=None)
    with pytest.raises(ModelError, match="it isn't known with what the decoder begins"):
        state_of("t5", folder)


def test_prefix_of_the_config_wins(tmp_path: Path) -> None:
    named = {"translation_en_to_de": {"prefix": "into German: "}}
    folder = build_writer("t5", tmp_path, task_specific_params=named)
    assert state_of("t5", folder).prefix == "into German: "
    assert state_of("t5", folder, source_prefix="").prefix == ""
    assert framing.own_prefix(load_config(folder), imported(folder, TASK).tokenizer, "en", "tav") == ""


def test_the_saved_config_writes_alike(family: str, folder: Path, tmp_path: Path) -> None:
    """generation_config.json of the saved model has the language and the start, for whoever loads it."""
    state = state_of(family, folder)
    model, _ = load_model(folder, TASK, state)
    model.save_pretrained(tmp_path)
    saved: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config
    wanted = generation_config(model, state)
    for name in ("forced_bos_token_id", "decoder_start_token_id", "max_new_tokens", "num_beams", "eos_token_id"):
        assert vars(saved)[name] == vars(wanted)[name]


def test_rows_come_back_in_their_order(family: str, folder: Path) -> None:
    """Batches of several rows, longest first; each is written as if it were alone."""
    state = state_of(family, folder)
    model, _ = load_model(folder, TASK, state)
    tokenizer = imported(folder, TASK).tokenizer
    together = predict_rows(model, tokenizer, rows(7), TASK, state, batch_size=3)
    alone = [predict_rows(model, tokenizer, [row], TASK, state, batch_size=1)[0] for row in rows(7)]
    assert [p["text"] for p in together] == [p["text"] for p in alone]
    assert [p["tokens"] for p in together] == [p["tokens"] for p in alone]


def test_the_loss_of_evaluation_is_the_models_own(family: str, folder: Path) -> None:
    state = state_of(family, folder, max_target_length=150)
    model, _ = load_model(folder, TASK, state)
    batch = batch_of(folder, state)
    reduced, mean = predict(model, [batch], TASK, replace(state, max_target_length=3), keep_batches=1)
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids", "labels")}
        assert mean == pytest.approx(float(model(**inputs).loss), abs=1e-5)
    assert reduced["items"].sum() == (batch["labels"] != -100).sum()
