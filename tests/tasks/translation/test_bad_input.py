"""Bad pairs through the command line of preprocess: what is said of them, and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune import model_selector, preprocess
from finetune.core.errors import DataError
from finetune.data.folders import Preprocessed, read_rows
from tests.conftest import write_jsonl
from tests.tasks.translation.samples import ENGLISH, FRENCH, GERMAN
from tests.writers import build_writer, pairs

pytestmark = pytest.mark.slow
GOOD = pairs()[:20]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    words = ["--pytorch_model_path", str(build_writer("t5", folder / "tiny")), "--output_dir", str(folder / "imported")]
    model_selector.main(["--task", "translation", *words])
    return folder / "imported"


class Prepare:
    """Run preprocess on a training file beside good ones, and tell what it printed."""

    def __init__(self, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model, self.folder, self.capsys = model, folder, capsys

    def __call__(self, train: bytes | list[dict[str, Any]], name: str = "train.jsonl", **given: Any) -> str:
        file = self.folder / name
        if isinstance(train, bytes):
            file.write_bytes(train)
        else:
            write_jsonl(file, train)
        words = {"source_lang": "en", "target_lang": "tav", "train_file_path": file, **given}
        for split in ("validation", "test"):
            words.setdefault(f"{split}_file_path", write_jsonl(self.folder / f"{split}.jsonl", pairs(split)[:4]))
        words |= {"model_selector_output": self.model, "output_dir": self.folder / "out"}
        given_words = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        preprocess.main(["--task", "translation", *given_words])
        return self.capsys.readouterr().out

    def refused(self, train: bytes | list[dict[str, Any]], *given: Any, **more: Any) -> str:
        with pytest.raises(DataError) as caught:
            self(train, *given, **more)
        return str(caught.value)

    def rows(self) -> list[dict[str, Any]]:
        return read_rows(Preprocessed.rows_file(self.folder / "out", "train"))


@pytest.fixture
def prepare(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepare:
    return Prepare(model, tmp_path, capsys)


def test_a_column_is_missing(prepare: Prepare) -> None:
    said = prepare.refused([{"en": pair["en"], "german": pair["tav"]} for pair in GOOD])
    assert "no column 'tav'" in said and "--target_lang with one of: en, german" in said


def test_sides_that_are_null_or_empty(prepare: Prepare) -> None:
    bad: list[dict[str, Any]] = [{**GOOD[17], "tav": None}, {**GOOD[18], "tav": " "}, {"en": "", "tav": "x"}]
    given = [*GOOD[:17], *bad]
    said = prepare.refused(given)
    assert "3 of 20 rows have to be dropped" in said and "--max_dropped_fraction 0.16" in said
    assert "1: no source text (rows 20)" in said and "2: no targets (rows 18, 19)" in said
    assert "train: 17 of 20 rows" in prepare(given, max_dropped_fraction=0.16)


def test_very_long_lines(prepare: Prepare) -> None:
    long = [{side: text * 60 for side, text in pair.items()} if i % 10 == 0 else pair for i, pair in enumerate(GOOD)]
    said = prepare(long)
    assert "10.0% of the targets have more than 512 tokens" in said and "train: 18 of 20 rows" in said
    assert "dropped 2: its source has more than 512 tokens (max_seq_length) (rows 1, 11)" in said
    said = prepare.refused(long, max_dropped_fraction=0.05)
    assert "split long texts" in said and "--max_dropped_fraction 0.11" in said


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_encodings(prepare: Prepare, ending: str) -> None:
    """That of UTF-16 is told by its first bytes; a letter of Latin-1 is no UTF-8, and nothing is guessed."""
    texts = [{"en": f"{pair['en']} café", "tav": pair["tav"]} for pair in GOOD]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in texts)
    if ending == "csv":
        whole = "en,tav\n" + "".join(f'"{row["en"]}","{row["tav"]}"\n' for row in texts)
    said = prepare.refused(whole.encode("latin-1"), f"train.{ending}")
    assert "is not UTF-8" in said and "iconv -f cp1252 -t utf-8" in said
    prepare(whole.encode("utf-16"), f"train.{ending}")
    assert [row["source"] for row in prepare.rows()] == [row["en"] for row in texts]


def test_texts_that_were_read_wrongly_before(prepare: Prepare) -> None:
    wrong = [{**GOOD[0], "en": "café".encode().decode("cp1252")}, {**GOOD[1], "en": "Tom &amp; Eve"}, *GOOD[2:]]
    said = prepare([*wrong, {"en": "São Tomé, à la carte, naïve", "tav": "été"}])
    assert "train: 1 of 21 pairs seem to be UTF-8 that was read as Windows text, as Ã© for é" in said
    assert "train: 1 of 21 pairs hold HTML entities, as &amp;" in said


def test_swapped_columns(prepare: Prepare) -> None:
    russian = [{"en": pair["en"], "ru": f"Привет мир {i}"} for i, pair in enumerate(GOOD)]
    swapped = [{"en": row["ru"], "ru": row["en"]} for row in russian]
    others = {
        f"{split}_file_path": write_jsonl(prepare.folder / "ru.jsonl", russian) for split in ("validation", "test")
    }
    said = prepare([*russian, *swapped[:2]], target_lang="ru", **others)
    assert "kept 2: source and target seem to be swapped: CYRILLIC to LATIN (rows 21, 22)" in said
    assert "warning" not in said
    said = prepare(swapped, target_lang="ru", **others)
    assert "the columns seem to be swapped: the text of source_lang en is in CYRILLIC, target_lang ru in LATIN" in said


def test_swapped_columns_of_one_script(prepare: Prepare) -> None:
    german = [{"en": one, "de": other} for one, other in zip(ENGLISH * 9, GERMAN * 9, strict=True)]
    swapped = [{"en": row["de"], "de": row["en"]} for row in german]
    others = {
        f"{split}_file_path": write_jsonl(prepare.folder / "de.jsonl", german) for split in ("validation", "test")
    }
    said = prepare([*german, *swapped[:2]], target_lang="de", **others)
    assert "kept 2: source and target seem to be swapped: de to en (rows 37, 38)" in said and "warning: the" not in said
    said = prepare(swapped, target_lang="de", **others)
    assert "train: warning: the columns seem to be swapped: the text of source_lang en reads like de, target" in said
    assert "to translate from en, --source_key de --target_key en" in said
    french = [{"en": one, "de": other["de"]} for one, other in zip(FRENCH * 9, german, strict=True)]
    said = prepare(french, target_lang="de", **others)
    assert "train: warning: the text of source_lang en reads like fr" in said


def test_pairs_of_another_split(prepare: Prepare) -> None:
    said = prepare(GOOD, test_file_path=write_jsonl(prepare.folder / "same.jsonl", GOOD[:3]))
    assert "test: 3 of 3 pairs stand in train too" in said and "validation:  of" not in said
