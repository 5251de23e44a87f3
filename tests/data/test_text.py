"""Text that can't be read is told by its true reason: another encoding, by its bytes, or a file that was cut off."""

import gzip
import io
import os
import subprocess
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from finetune.core.errors import DataError
from finetune.data import text
from finetune.data.readers import read_table

TEXTS = {
    "cp1252": "Où est né l'homme? À Besançon, le 3 août.",
    "cp1250": "Kdo napsal tuto zprávu? Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "cp1251": "Кто построил мельницу? Её построил мастер из соседнего города.",
    "cp1256": "من كتب هذه الرسالة؟ كتبها رجل من القاهرة.",
    "cp932": "誰が書いたのですか。東京は日本の首都である。",
    "big5": "誰寫的？臺北是臺灣的首都，人口很多，交通方便。",
    "gb18030": "这封信是谁写的？北京是中国的首都，人口很多，交通方便，天气也好。",
    "euc_jp": "誰が書いたのですか。東京は日本の首都である。",
    "cp949": "누가 이 편지를 썼습니까? 서울은 한국의 수도이다.",
}


def why_not(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    return str(caught.value)


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.conll", "a.jsonl.gz"])
def test_the_encoding_is_named_in_a_command_that_works(encoding: str, name: str, tmp_path: Path) -> None:
    content = f'{{"question": "{TEXTS[encoding]}"}}\n'.encode(encoding)
    said = why_not(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    assert "not UTF-8" in said
    command = said[said.index("iconv") :].splitlines()[0]
    if name == "a.jsonl":
        converted = subprocess.run(command, shell=True, capture_output=True, check=True).stdout
        assert converted.decode() == content.decode(encoding)
    else:
        assert f"-f {encoding.replace('_', '-')} " in command


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"question": ["Who?"] * 9}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"a": "one"}\n{"a": "tw'),
        ("a.jsonl", b'{"a": "one"}\n{"a": '),
        ("a.jsonl", b'{"a": "one"}\n{"a"'),
        ("a.json", b'[{"a": "one"}, {"a": "tw'),
        ("a.json", b'[{"a": "one"},'),
        ("a.jsonl", '{"a": "é'.encode()[:-1]),
        ("a.csv", 'a,b\n1,"né'.encode()[:-1]),
        ("a.jsonl.gz", gzip.compress(b'{"a": "one"}\n' * 99, mtime=0)[:-12]),
        ("a.parquet", parquet()[:-40]),
    ],
)
def test_a_file_that_was_cut_off(name: str, content: bytes, tmp_path: Path) -> None:
    said = why_not(tmp_path / name, content)
    assert "cut off" in said
    assert "copy or download the file again" in said


def test_lines_of_json_may_end_in_any_way(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"a": "x\x85\u2028y"}\r{"a": "z"}\r\n\r\n{"a": "w"}\n'.encode())
    table = read_table(tmp_path / "a.jsonl")
    assert [row["a"] for row in table.rows] == ["x\x85\u2028y", "z", "w"]
    assert list(table.numbers) == [1, 2, 4]


# --- files that are none, and files that hold too much ---


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "circle.jsonl").symlink_to("circle.jsonl")
    said = {"folder": "is a folder", "pipe": "is a pipe or a device", "circle": "Too many levels", "none": "is missing"}
    for name, why in said.items():
        with pytest.raises(DataError, match=why):
            read_table(tmp_path / f"{name}.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.conll.gz", "a.json.gz", "a.parquet.gz"])
def test_a_small_file_that_unpacks_to_gigabytes(name: str, tmp_path: Path) -> None:
    line = b"a,b\n" if name == "a.csv.gz" else b" "
    with gzip.open(tmp_path / name, "wb") as file:
        for _ in range(70):
            file.write(line * (2**20 // len(line)))
    with pytest.raises(DataError, match="unpacks to too much") as caught:
        read_table(tmp_path / name)
    assert "make more than 67,108,864; 200 times as many are allowed" in str(caught.value)
    assert f"gunzip -c {tmp_path / name} > {name.removesuffix('.gz')}" in str(caught.value)


def test_a_parquet_file_of_one_long_value_again_and_again(tmp_path: Path) -> None:
    table = pyarrow.table({"a": pyarrow.array(["x" * 100_000] * 1000).dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    with pytest.raises(DataError, match="unpacks to too much"):
        read_table(tmp_path / "a.parquet")


def test_files_that_are_packed_well_are_read(tmp_path: Path) -> None:
    """The same row again and again, a thousandth of its size, and rows that are packed to a hundredth."""
    same = b'{"question": "Who?", "context": "Ada wrote it."}\n' * 40_000
    (tmp_path / "same.jsonl.gz").write_bytes(gzip.compress(same))
    assert len(same) > 150 * (tmp_path / "same.jsonl.gz").stat().st_size
    assert len(read_table(tmp_path / "same.jsonl.gz").rows) == 40_000


def test_the_limit_grows_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "ALWAYS", 1000)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"a": 1}\n' * 1200))
    assert 1000 < 200 * packed.stat().st_size > 9 * 1200
    assert len(read_table(packed).rows) == 1200
    packed.write_bytes(gzip.compress(b'{"a": 1}\n' * 400_000))
    with pytest.raises(DataError, match="unpacks to too much"):
        read_table(packed)
