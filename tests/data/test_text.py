"""Text that can't be read is told by its true reason: another encoding, by its bytes, or a file that was cut off."""

import gzip
import io
import subprocess
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from finetune.core.errors import DataError
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
    assert table.numbers == [1, 2, 4]
