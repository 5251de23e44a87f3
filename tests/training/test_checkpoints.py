"""Which checkpoints are trusted, and which are kept."""

import contextlib
import json
import random
from pathlib import Path

import pytest
import xxhash

from finetune.training import checkpoints


def write(folder: Path, step: int, best: int | None = None) -> Path:
    """A complete checkpoint, as training writes it."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoints.begin(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"w" * 100)
    (checkpoint / "global_step").mkdir()
    (checkpoint / "global_step" / "shard.pt").write_bytes(b"s" * 50)
    (checkpoint / checkpoints.STATE).write_text(json.dumps({"best_global_step": best}))
    checkpoints.finish(checkpoint, {"windows": 3}, checkpoints.flush(checkpoint, 0))
    return checkpoint


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("checkpoint-")) for path in checkpoints.checkpoints(folder)]


def test_the_newest_complete_one(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        write(tmp_path, step)
    assert checkpoints.newest_complete(tmp_path) == tmp_path / "checkpoint-100"
    assert checkpoints.newest_complete(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda c: (c / "model.safetensors").write_bytes(b"w" * 99), "model.safetensors has 99 bytes instead of 100"),
        (lambda c: (c / "global_step" / "shard.pt").unlink(), "global_step/shard.pt is missing"),
        (lambda c: (c / checkpoints.COMPLETE).unlink(), "it was not written to its end"),
        (lambda c: (c / checkpoints.COMPLETE).write_text('{"run": {"win'), "its complete can't be read"),
        (lambda c: (c / checkpoints.COMPLETE).write_text(""), "its complete can't be read"),
        (checkpoints.begin, "it was not written to its end"),
    ],
)
def test_a_torn_one_is_named(tmp_path, capsys, harm, why) -> None:
    """What was never complete is removed; what was, moved out of the way; what others wrote, stays."""
    good = write(tmp_path, 5)
    torn = tmp_path / "checkpoint-10"
    harm(write(tmp_path, 10))
    ours, was_complete = checkpoints._is_ours(torn), (torn / checkpoints.COMPLETE).exists()
    assert checkpoints.newest_complete(tmp_path) == good
    said = [f"skip checkpoint-10: {why}{'; removed' if ours and not was_complete else ''}"]
    said += ["moved to skipped-1/: checkpoint-10"] if was_complete else []
    assert capsys.readouterr().out.splitlines() == said
    assert steps(tmp_path) == ([5] if ours else [10, 5])
    assert (tmp_path / "skipped-1" / "checkpoint-10").exists() == was_complete


def test_a_checkpoint_of_others_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "model.safetensors").write_bytes(b"theirs")
    assert checkpoints.newest_complete(tmp_path) is None
    assert "skip checkpoint-7" in capsys.readouterr().out and steps(tmp_path) == [7]
    write(tmp_path, 3)
    checkpoints.keep(tmp_path, 1, {tmp_path / "checkpoint-3"})
    assert steps(tmp_path) == [7, 3]


def test_one_whose_best_is_why_incomplete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run that goes on from it could not give back the best model."""
    write(tmp_path, 5, best=5)
    write(tmp_path, 10, best=10)
    write(tmp_path, 15, best=10)
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"")
    assert checkpoints.newest_complete(tmp_path) == tmp_path / "checkpoint-5"
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        "skip checkpoint-15: without the best model up to it, in checkpoint-10, which is incomplete: "
    )
    assert said[1].startswith("skip checkpoint-10: model.safetensors has 0 bytes") and steps(tmp_path) == [5]
    assert steps(tmp_path / "skipped-1") == [15, 10]  # nothing that was complete is lost


@pytest.mark.parametrize("text", ["", "\0\0\0", "[]", "{}"])
def test_a_state_or_marker_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    good = write(tmp_path, 5)
    state = write(tmp_path, 10) / checkpoints.STATE
    state.write_text(text)
    marker = json.loads((state.parent / checkpoints.COMPLETE).read_text())
    marker["files"][checkpoints.STATE] = len(text)
    del marker["checksums"]
    (state.parent / checkpoints.COMPLETE).write_text(json.dumps(marker))
    (write(tmp_path, 15) / checkpoints.COMPLETE).write_text("[]")
    assert checkpoints.newest_complete(tmp_path) == good


def test_those_of_others_are_not_discarded(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    write(tmp_path, 5)
    checkpoints.discard(tmp_path)
    assert steps(tmp_path) == [7]


def test_numbers_of_earlier_runs(tmp_path: Path) -> None:
    for name in ("earlier-run-1", "earlier-run-3"):
        (tmp_path / name).mkdir()
    write(tmp_path, 5)
    checkpoints.move_aside(tmp_path)
    assert steps(tmp_path / "earlier-run-4") == [5]


def test_nothing_of_an_earlier_try_is_left(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 5)
    (checkpoint / "stale.pt").touch()
    write(tmp_path, 5)
    assert not (checkpoint / "stale.pt").exists() and checkpoints.why_incomplete(checkpoint) == ""


@pytest.mark.parametrize(("limit", "best", "left"), [(1, 10, [40, 10]), (2, 10, [40, 10]), (3, 10, [40, 30, 10])])
def test_the_best_and_the_newest_are_kept(tmp_path: Path, limit: int, best: int, left: list[int]) -> None:
    written = {step: write(tmp_path, step) for step in (10, 20, 30, 40)}
    checkpoints.keep(tmp_path, limit, {written[40], written[best]})
    assert steps(tmp_path) == left


def test_a_checkpoint_without_its_best_one_takes_no_place(tmp_path: Path) -> None:
    """If the newest one is damaged, there is another one to go on from."""
    for step, best in ((4, None), (6, 6), (8, 6), (12, 12), (16, 12)):
        written = write(tmp_path, step, best)
        checkpoints.keep(tmp_path, 3, {written, tmp_path / f"checkpoint-{best or step}"})
    assert steps(tmp_path) == [16, 12, 6]
    write(tmp_path, 14, 13)  # whose best one is gone
    checkpoints.keep(tmp_path, 4, {tmp_path / "checkpoint-16"})
    assert steps(tmp_path) == [16, 12, 6]
    (tmp_path / "checkpoint-12" / "model.safetensors").write_bytes(b"")
    assert checkpoints.newest_complete(tmp_path) == tmp_path / "checkpoint-6"


@pytest.mark.parametrize("after", range(1, 6))
def test_what_is_left_of_a_removal_is_torn_and_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whichever file it was killed at."""
    checkpoint, left, unlink = write(tmp_path, 5), [after], Path.unlink

    def until_killed(path: Path, missing_ok: bool = False) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", until_killed)
    with contextlib.suppress(KeyboardInterrupt):
        checkpoints.remove(checkpoint)
    monkeypatch.undo()
    if checkpoint.exists():
        assert checkpoints.why_incomplete(checkpoint) and checkpoints._is_ours(checkpoint)
        assert checkpoints.newest_complete(tmp_path) is None
    assert not checkpoint.exists()


def test_the_marker_names_what_each_process_wrote(tmp_path: Path) -> None:
    """By what each found of its own: what it sees of others' files may be old."""
    checkpoint = tmp_path / "checkpoint-5"
    checkpoints.begin(checkpoint)
    (checkpoint / "step").mkdir()
    parts = {"step/zero_pp_rank_0_mp_rank_00_optim.pt": 3, "step/zero_pp_rank_1_mp_rank_00_optim.pt": 5, "w.bin": 7}
    for name, size in parts.items():
        (checkpoint / name).write_bytes(b"x" * size)
    own, other = checkpoints.flush(checkpoint, 0), checkpoints.flush(checkpoint, 1)
    assert other.keys() == {"step/zero_pp_rank_1_mp_rank_00_optim.pt"} and own.keys() == parts.keys() - other.keys()
    checkpoints.finish(checkpoint, {}, own | other)
    marker = json.loads((checkpoint / checkpoints.COMPLETE).read_text())
    assert marker["files"] == parts and marker["checksums"].keys() == parts.keys()
    assert marker["checksums"]["w.bin"] == xxhash.xxh3_128(b"x" * 7).hexdigest()


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An older and a newer checkpoint, both complete."""
    monkeypatch.setattr(checkpoints, "READ", 1000)  # files of several parts
    older, newer = write(tmp_path, 5), tmp_path / "checkpoint-10"
    checkpoints.begin(newer)
    (newer / "global_step").mkdir()
    chance = random.Random(1)
    sizes = {"model.safetensors": 5000, "optimizer.pt": 9000, "rng_state.pth": 300, "global_step/shard.pt": 100}
    for name, size in sizes.items():
        (newer / name).write_bytes(chance.randbytes(size))
    (newer / checkpoints.STATE).write_text(json.dumps({"best_global_step": 10, "log_history": ["x" * 500]}))
    checkpoints.finish(newer, {"windows": 3, "data": "7f3a"}, checkpoints.flush(newer, 0))
    assert checkpoints.newest_complete(tmp_path) == newer
    return older, newer


def changed(content: bytes, place: int, chance: random.Random) -> bytes:
    """The content with another byte in that place."""
    other = (content[place] + chance.randrange(1, 256)) % 256
    return content[:place] + bytes([other]) + content[place + 1 :]


def refuse_newer(older: Path, newer: Path) -> None:
    """Let the run go on from the older checkpoint, and bring back the newer one, which it has moved aside."""
    assert checkpoints.newest_complete(newer.parent) == older
    (newer.parent / "skipped-1" / newer.name).rename(newer)
    (newer.parent / "skipped-1").rmdir()


def test_every_byte_counts(two: tuple[Path, Path]) -> None:
    """1,000 bytes that changed, in all files: each is noticed, and the older checkpoint is taken."""
    older, newer = two
    chance = random.Random(2)
    names = ["model.safetensors", "optimizer.pt", "rng_state.pth", "global_step/shard.pt", checkpoints.STATE]
    there = {path.relative_to(newer).as_posix() for path in newer.rglob("*") if path.is_file()}
    assert there == {*names, checkpoints.COMPLETE}
    for turn in range(1000):
        path = newer / names[turn % len(names)]
        before = path.read_bytes()
        path.write_bytes(changed(before, chance.randrange(len(before)), chance))
        why = checkpoints.why_incomplete(newer)
        assert why == f"{path.relative_to(newer)} is damaged: it has its size, but not the content that was written"
        if turn % 20 == 0:
            refuse_newer(older, newer)
        path.write_bytes(before)
    assert checkpoints.why_incomplete(newer) == ""


def test_every_byte_of_the_marker_counts(two: tuple[Path, Path]) -> None:
    """A damaged list of files vouches for nothing: not if a file's name, a checksum or the word "files" has changed."""
    older, newer = two
    chance = random.Random(3)
    marker = newer / checkpoints.COMPLETE
    before = marker.read_bytes()
    reasons = set()
    for place in range(len(before)):
        for content in (
            changed(before, place, chance),
            before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :],
        ):
            with contextlib.suppress(ValueError):
                if json.loads(content) == json.loads(before):
                    continue  # another white space
            marker.write_bytes(content)
            reasons.add(checkpoints.why_incomplete(newer))
        if place % 40 == 0:
            refuse_newer(older, newer)
    assert reasons == {f"its {checkpoints.COMPLETE} can't be read", f"its {checkpoints.COMPLETE} is damaged"}
    marker.write_bytes(before)
    assert checkpoints.why_incomplete(newer) == ""


def test_a_damaged_one_is_not_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path, 5)
    (write(tmp_path, 10) / "model.safetensors").write_bytes(b"w" * 99 + b"v")
    assert checkpoints.newest_complete(tmp_path) == good
    assert "skip checkpoint-10: model.safetensors is damaged: it has its size, but not" in capsys.readouterr().out


def test_a_checkpoint_of_another_program_is_moved_out_of_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "model.safetensors").write_bytes(b"theirs")
    write(tmp_path, 7)
    assert capsys.readouterr().out == "checkpoint-7 was written by another program: moved to others-1/\n"
    assert (tmp_path / "others-1" / "checkpoint-7" / "model.safetensors").read_bytes() == b"theirs"
    assert checkpoints.why_incomplete(tmp_path / "checkpoint-7") == ""
