"""finetune register: what it says without a network."""

import pytest

from finetune.azure.declare import ROOT
from finetune.azure.service import connection
from finetune.azure.service.release import find_release
from finetune.core.errors import ParameterError
from finetune.register import main


def test_dry_run_asks_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(connection, "connect", lambda place: pytest.fail("connected"))
    main(["--dry-run"])
    release = find_release(ROOT)
    title, _, rows = capsys.readouterr().out.partition("--- would be registered\n")
    assert title == f"[register]\nversion {release.version}: of the code, the YAMLs and the environments\n"
    assert [row.split() for row in rows.splitlines()] == [
        [asset.kind, asset.name, release.version] for asset in release.assets
    ]


def test_wrong_words_are_all_said() -> None:
    with pytest.raises(ParameterError) as caught:
        main(["word", "--dryrun", "--registry", "r", "--workspace", "w"])
    assert [fault.what for fault in caught.value.faults] == [
        "unknown option --dryrun; did you mean --dry-run?",
        "unexpected word 'word'",
        "--registry and --workspace are both given",
    ]
