"""What users have in and around the folders of a command line stays as it is, whatever a component does."""

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import evaluation, model_selector, preprocess, run
from finetune.core.errors import FinetuneError, ParameterError, StorageError
from finetune.core.lock import LOCK
from finetune.core.outputs import MANIFEST, Manifest, Output, bring_in, claimed, clear, overlaps
from finetune.params.components import TASKS
from finetune.params.schema import params_of
from finetune.pipeline import main as run_pipeline
from finetune.training import checkpoints
from tests.conftest import finetune_words, sample_rows, write_jsonl

TASK = ["--task", "question_answering"]
QUICK = {"max_steps": 1, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}


def words(**given: object) -> list[str]:
    return [*TASK, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def content(root: Path) -> dict[str, str]:
    """What is below the folder: a digest of each file, the target of each link, and empty folders."""
    found = {}
    for folder, inner, files in os.walk(root):
        for name in (*inner, *files):
            path = Path(folder) / name
            if path.is_symlink():
                found[str(path)] = f"-> {path.readlink()}"
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def lost(before: dict[str, str], root: Path) -> list[str]:
    """What is gone or changed of it."""
    after = content(root)
    return [path for path, value in before.items() if after.get(path) != value]


def rows_in(folder: Path, count: int = 48) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_jsonl(folder / "train.jsonl", sample_rows("train")[:count])


def refused(main: Callable[[list[str]], None], argv: list[str], root: Path, *parts: str) -> None:
    """The run ends with a parameter error that has the parts, and all is as it was, the folders too."""
    before = content(root)
    with pytest.raises(ParameterError) as caught:
        main(argv)
    assert [part for part in parts if part not in str(caught.value)] == [] and "fix: --" in str(caught.value)
    assert content(root) == before


# --- what was lost ---


def test_the_source_is_in_the_output_of_model_import(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    argv = words(pytorch_model_path="model", output_dir=".")
    refused(model_selector.main, argv, tmp_path, "--output_dir . holds --pytorch_model_path model")
    argv = words(huggingface_id="model", output_dir="model/out")
    refused(model_selector.main, argv, tmp_path, "--output_dir model/out lies in --huggingface_id model")
    (tmp_path / "link").symlink_to("model")
    argv = words(pytorch_model_path="model", output_dir="link")
    refused(model_selector.main, argv, tmp_path, "--output_dir link is --pytorch_model_path model")


def test_the_folder_of_the_training_file(prepared: Path, tmp_path: Path) -> None:
    file = rows_in(tmp_path / "data")
    for name in ("train/a.txt", "test/b.txt", "tokenizer/c.txt"):
        (tmp_path / "data" / name).parent.mkdir()
        (tmp_path / "data" / name).write_text("mine")
    argv = words(train_file_path=file, model_selector_output=prepared / "model", output_dir=tmp_path / "data")
    refused(preprocess.main, argv, tmp_path, f"--output_dir {tmp_path / 'data'} holds --train_file_path {file}")
    argv[argv.index("--train_file_path") + 1] = str(rows_in(tmp_path / "elsewhere"))
    refused(preprocess.main, argv, tmp_path, "did not write: test/b.txt, tokenizer/c.txt, train/a.txt")


def test_an_output_in_the_imported_model(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "model", tmp_path / "imported")
    file = rows_in(tmp_path / "data")
    argv = words(
        train_file_path=file, model_selector_output=tmp_path / "imported", output_dir=tmp_path / "imported" / "model"
    )
    refused(preprocess.main, argv, tmp_path, "lies in --model_selector_output")


def test_a_gold_file_named_as_the_predictions(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    gold = rows_in(tmp_path / "data").rename(tmp_path / "out" / "predictions.jsonl")
    argv = words(test_data=gold, pytorch_model_folder=tiny_model, evaluation_result=tmp_path / "out")
    refused(evaluation.main, argv, tmp_path, f"holds --test_data {gold}")
    argv[argv.index("--test_data") + 1] = str(rows_in(tmp_path / "data"))
    refused(evaluation.main, argv, tmp_path, "did not write: predictions.jsonl")


OWN = {
    "pytorch": (
        "README.md",
        "config.json",
        "adapter_mine/a",
        "adapter_config.json",
        "model.safetensors",
        "base_model/a",
    ),
    "mlflow": ("code/a.py", "artifacts/a", "requirements.txt"),
}


@pytest.mark.parametrize("folder", OWN)
def test_files_in_the_folders_of_a_model(prepared: Path, tmp_path: Path, folder: str) -> None:
    for name in OWN[folder]:
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text("mine")
    argv = finetune_words(prepared, tmp_path, **QUICK)
    colliding = [name for name in OWN[folder] if not name.startswith("adapter_mine")]
    refused(run.main, argv, tmp_path, f"did not write: {', '.join(sorted(colliding))}")


@pytest.mark.slow
def test_files_beside_those_of_a_model(prepared: Path, tmp_path: Path) -> None:
    """What doesn't collide stays; what a run wrote, and it alone, is replaced by the next."""
    for name in ("pytorch/adapter_mine/a", "pytorch/model_q4-00001-of-00002.safetensors", "pytorch/checkpoint-old/a",
                 "mlflow/notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    run.main(finetune_words(prepared, tmp_path, **QUICK))
    lora = {"apply_lora": "true", "merge_lora_weights": "false"}
    run.main(finetune_words(prepared, tmp_path, **QUICK, **lora))
    run.main(finetune_words(prepared, tmp_path, **QUICK, **lora, resume_from_checkpoint="true"))
    assert lost(before, tmp_path) == []
    assert not (tmp_path / "pytorch" / "model.safetensors").exists()
    for folder in ("pytorch", "mlflow"):
        written = Manifest.read(tmp_path / folder)
        there = {path.removeprefix(f"{tmp_path / folder}/") for path in content(tmp_path / folder)}
        others = {path.removeprefix(f"{tmp_path / folder}/") for path in before} | {MANIFEST}
        assert {name for name in there - others if not name.startswith("earlier-run-1/")} == written.files
        assert not written.unfinished
    (tmp_path / "pytorch" / "checkpoint-1" / "notes.txt").write_text("mine")
    argv = finetune_words(prepared, tmp_path, **QUICK, **lora, resume_from_checkpoint="true")
    refused(run.main, argv, tmp_path, "did not write: checkpoint-1/notes.txt")


@pytest.mark.slow
def test_a_checkpoint_that_was_copied_is_known_by_its_mark(prepared: Path, tmp_path: Path) -> None:
    run.main(finetune_words(prepared, tmp_path / "one", **QUICK))
    shutil.copytree(tmp_path / "one" / "pytorch" / "checkpoint-1", tmp_path / "two" / "pytorch" / "checkpoint-1")
    run.main(finetune_words(prepared, tmp_path / "two", **QUICK, resume_from_checkpoint="true"))
    theirs = tmp_path / "three" / "pytorch" / "checkpoint-1" / "model.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    argv = finetune_words(prepared, tmp_path / "three", **QUICK)
    refused(run.main, argv, tmp_path, "did not write: checkpoint-1/model.safetensors")


def test_the_folders_of_a_local_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "step.py").write_text("")
    step = "type: command\ninputs: {data: {type: uri_file}}\noutputs: {}\ncode: ./code\ncommand: python step.py\n"
    (tmp_path / "step.yaml").write_text(step)
    job = "{component: 'file:./step.yaml', inputs: {data: '${{parent.inputs.data}}'}}"
    text = f"type: pipeline\ninputs: {{data: {{type: uri_file}}}}\noutputs: {{}}\njobs: {{one: {job}}}\n"
    (tmp_path / "pipeline.yaml").write_text(text)
    file = rows_in(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    argv = ["pipeline.yaml", "--set", f"data={file}", "--output"]
    refused(run_pipeline, [*argv, "data"], tmp_path, f"--output {tmp_path / 'data'} holds --set data {file}")
    for name in ("code/mine.py", "log.txt"):
        (tmp_path / "out" / "steps" / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / "steps" / "one" / name).write_text("mine")
    refused(run_pipeline, [*argv, "out"], tmp_path, "did not write: code/mine.py, log.txt")


# --- the manifest ---


def output(folder: Path, *names: str) -> Output:
    return Output("--out", folder, names)


def test_what_an_interrupted_run_leaves_is_ours(tmp_path: Path) -> None:
    """One that could not even write its manifest: it wrote it first."""
    Manifest(frozenset({"old.txt"}), ("made/", "part-#.txt")).write(tmp_path)
    for name in ("made/deep/a", "part-1.txt", "part-x.txt", "old.txt", "mine"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = ("made/", "part-#.txt", "old.txt")
    with claimed([output(tmp_path, *names)]):
        clear(tmp_path, names)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != LOCK) == ["mine", "part-x.txt", MANIFEST]
        (tmp_path / "old.txt").write_text("new")
    assert Manifest.read(tmp_path) == Manifest(frozenset({"old.txt"}))


def test_what_is_added_to_a_folder_of_ours_is_not_ours(tmp_path: Path) -> None:
    out = output(tmp_path / "out", "made/", "one")
    with contextlib.suppress(KeyboardInterrupt), claimed([out]):
        (tmp_path / "out" / "made" / "empty").mkdir(parents=True)
        raise KeyboardInterrupt
    with claimed([out]):
        pass
    (tmp_path / "out" / "made" / "notes").write_text("mine")
    with pytest.raises(ParameterError, match="did not write: made/notes"), claimed([out]):
        pass


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("elsewhere"), r"one \(a link\)"),
        (lambda path: path.mkdir(), "one/"),
        (lambda path: (path.parent / "made").write_text(""), "made"),
        (lambda path: (path.parent / "made").symlink_to("."), r"made \(a link\)"),
    ],
)
def test_what_took_the_place_of_ours(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    out = output(tmp_path, "made/", "one")
    with claimed([out]):
        (tmp_path / "one").write_text("")
    (tmp_path / "one").unlink()
    make(tmp_path / "one")
    with pytest.raises(ParameterError, match=f"did not write: {said}"), claimed([out]):
        pass


def test_a_link_is_not_ours_where_a_run_was_killed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("mine")
    Manifest(frozenset(), ("one",)).write(tmp_path / "out")
    (tmp_path / "out" / "one").symlink_to("../mine")
    with (
        pytest.raises(ParameterError, match=r"did not write: one \(a link\)"),
        claimed([output(tmp_path / "out", "one")]),
    ):
        pass


def test_a_link_in_the_place_of_a_checkpoint(tmp_path: Path) -> None:
    """Though an incomplete checkpoint is there: that of another run, perhaps."""
    (tmp_path / "other").mkdir()
    for name in (checkpoints.WRITING, "model.safetensors"):
        (tmp_path / "other" / name).touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint-5").symlink_to("../other")
    out = Output("--out", tmp_path / "out", ("checkpoint-#/",), checkpoints.known(tmp_path / "out"))
    with pytest.raises(ParameterError, match=r"did not write: checkpoint-5 \(a link\)"), claimed([out]):
        checkpoints.newest_complete(tmp_path / "out")
    assert (tmp_path / "other" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["one", "made", "made/a"])
def test_a_link_that_comes_meanwhile_is_not_written_through(tmp_path: Path, name: str) -> None:
    out = output(tmp_path / "out", "one", "made/")
    with claimed([out]):
        (tmp_path / "out" / "made").mkdir()
        (tmp_path / "out" / "made" / "a").write_text("ours")
    place = tmp_path / "out" / name
    with pytest.raises(StorageError, match=rf"did not write: {name} \(a link\)"), claimed([out]):
        if os.path.lexists(place):
            place.rename(tmp_path / "moved")
        place.symlink_to(tmp_path)
        clear(tmp_path / "out", out.names)
    assert place.is_symlink()


@pytest.mark.parametrize("text", ["", "[]", '{"files": ["a"]}', '{"files": ["a"], "unfinished": ["../b"]}', "mine"])
def test_a_manifest_that_is_not_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ParameterError, match=f"{MANIFEST} that is not ours"), claimed([output(tmp_path, "a")]):
        pass
    assert (tmp_path / MANIFEST).read_text() == text


def test_nothing_outside_is_reached_by_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("mine")
    names = ["../mine", str(tmp_path / "mine"), "made/../../mine"]
    (tmp_path / "out" / MANIFEST).write_text(json.dumps({"files": names, "unfinished": []}))
    with claimed([output(tmp_path / "out", "made/")]):
        clear(tmp_path / "out", ("made/",))
    assert (tmp_path / "mine").read_text() == "mine"


def test_nothing_is_left_where_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError), claimed([output(tmp_path / "a" / name, "x") for name in ("b", "c")]):
        raise StorageError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ParameterError, match="can't be a folder"), claimed([output(folder, "x")]):
            pass


def test_what_came_meanwhile_is_left(tmp_path: Path) -> None:
    for name in ("staged", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(name)
    with pytest.raises(StorageError, match=r"README\.md"):
        bring_in(tmp_path / "staged", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "out"


def test_empty_folders_under_our_names_are_in_nobodys_way(tmp_path: Path) -> None:
    for name in ("staged/made", "out/made", "out/mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "staged" / "made" / "a").write_text("")
    with claimed([output(tmp_path / "out", "made/")]):
        clear(tmp_path / "out", ("made/",))
        bring_in(tmp_path / "staged", tmp_path / "out")
    assert (tmp_path / "out" / "made" / "a").is_file() and (tmp_path / "out" / "mine").is_dir()


@pytest.mark.slow
def test_empty_folders_where_a_model_is_saved(prepared: Path, tmp_path: Path) -> None:
    for name in ("pytorch/.saving", "pytorch/base_model", "pytorch/adapter_mine", "mlflow/artifacts", "mlflow/code"):
        (tmp_path / name).mkdir(parents=True)
    run.main(finetune_words(prepared, tmp_path, **QUICK))
    assert (tmp_path / "mlflow" / "artifacts" / "model").is_dir()
    assert not (tmp_path / "pytorch" / "base_model").exists() and (tmp_path / "pytorch" / "adapter_mine").is_dir()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md", "training.json"])
def test_folders_in_place_of_files_of_a_model(prepared: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "pytorch" / name).mkdir(parents=True)
    refused(run.main, finetune_words(prepared, tmp_path), tmp_path, f"did not write: {name}/")


def test_overlaps(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    inputs = {"--in": tmp_path / "a" / "b"}
    for path, how in ((".", "holds"), ("a/b/c", "lies in"), ("link/../b", "is"), ("link", "is"), ("link/x", "lies in")):
        [fault] = overlaps(inputs, {"--out": tmp_path / path})
        assert fault.what == f"--out {tmp_path / path} {how} --in {tmp_path / 'a' / 'b'}"
    assert overlaps(inputs, {"--out": tmp_path / "a" / "bc", "--other": tmp_path / "a" / "bc" / "d"}) == []
    assert len(overlaps(inputs, {"--out": tmp_path / "x", "--other": tmp_path / "x"})) == 1


def test_every_output_says_what_is_written_there() -> None:
    for task in TASKS.values():
        for component in (task.model_import, task.datapreprocess, task.finetune, task.evaluation):
            assert [p.name for p in params_of(component) if p.output != bool(p.writes)] == []


# --- random trees ---

NAMES = (
    "model", "train", "test", "tokenizer", "windows", "README.md", "config.json", "metrics.json", "predictions.jsonl",
    "report.html", "preprocess.json", "preprocess.part", "model_selector_args.json", "model.safetensors", "vocab.txt",
    "rows.jsonl", "notes.txt", "data", "a b", ".hidden", "süß", MANIFEST, "tokenizer.json", "checkpoint-1", "code",
    "mlflow.db", "requirements.txt", "base_model", "logs", "resolved_config.yaml", "MLmodel",
)  # fmt: skip


def plant(random: random.Random, root: Path, count: int) -> None:
    """Make files, folders and links of a user below the folder, where nothing is yet."""
    for _ in range(count):
        path = root.joinpath(*random.choices(NAMES, k=random.choice((1, 1, 2, 3))))
        with contextlib.suppress(OSError):  # a file is where a folder would have to be
            if not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                kind = random.randrange(8)
                if kind == 0:
                    path.mkdir()
                elif kind == 1:
                    path.symlink_to(random.choice([root, root / "notes.txt", root.parent]))
                else:
                    path.write_bytes(random.randbytes(random.choice((0, 20))))


def place(random: random.Random, root: Path, *near: Path, usual: str = "out", among: int = 6) -> Path:
    """A folder to write into: often a good one, else in or around what is there, or by a link."""
    kind = random.randrange(among)
    if kind >= 3:
        return root / usual
    if kind == 0:
        return random.choice([root, *near, *(path.parent for path in near)])
    if kind == 1:
        return random.choice([path for path in root.rglob("*") if path.is_dir()] or [root])
    (link := root / f"link{random.randrange(10**9)}").symlink_to(random.choice([root, root / "out", *near]))
    return link


def commands(random: random.Random, root: Path, prepared: Path) -> list[tuple[Callable[[list[str]], None], list[str]]]:
    """Each component on inputs that lie in the tree; a quarter of them can't be read."""
    model, file = root / "data" / "model", root / "data" / "rows.jsonl"
    if random.random() < 0.25:
        (file if random.random() < 0.5 else model / "model" / "config.json").write_text("{")
    imported = words(pytorch_model_path=model / "model", output_dir=place(random, root, model, model / "model"))
    encoded = words(
        train_file_path=file, model_selector_output=model, output_dir=place(random, root, model, file.parent)
    )
    scored = words(test_data=file, pytorch_model_folder=model / "model", evaluation_result=place(random, root, model))
    trained = finetune_words(prepared, root, **QUICK)
    trained[trained.index("--model_selector_output") + 1] = str(model)
    for name, usual in (("--pytorch_model_folder", "out"), ("--mlflow_model_folder", "mlflow")):
        trained[trained.index(name) + 1] = str(place(random, root, model, usual=usual, among=12))
    return [(model_selector.main, imported), (preprocess.main, encoded), (evaluation.main, scored), (run.main, trained)]


def survives(seed: int, component: int, prepared: Path, root: Path) -> bool:
    """Run a component twice, with more of the user's files in between, and see all of them there. Did one succeed?"""
    chance = random.Random(seed)
    shutil.copytree(prepared / "model", root / "data" / "model")
    rows_in(root / "data").rename(root / "data" / "rows.jsonl")
    for folder in (root, root / "out", root / "data", root / "data" / "model" / "model"):
        plant(chance, folder, chance.randrange(4))
    main, argv = commands(chance, root, prepared)[component]
    succeeded = False
    mine = content(root)
    for _ in range(2):
        try:
            main(argv)
            succeeded = True
        except (FinetuneError, OSError) as error:
            assert isinstance(error, FinetuneError), error
        assert lost(mine, root) == [], f"seed {seed}: {argv}"
        before = set(content(root))
        plant(chance, root / "out", 2)
        mine |= {path: value for path, value in content(root).items() if path not in before}
    return succeeded


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 70), marks=pytest.mark.thorough)])
@pytest.mark.parametrize("component", range(3), ids=["model_selector", "preprocess", "evaluation"])
def test_random_trees_survive(prepared: Path, tmp_path: Path, component: int, seeds: range) -> None:
    done = [survives(seed, component, prepared, tmp_path / str(seed)) for seed in seeds]
    assert 0 < sum(done) < len(done)  # some are refused, some aren't


@pytest.mark.slow
def test_random_trees_survive_a_run(prepared: Path, tmp_path: Path) -> None:
    done = [survives(seed, 3, prepared, tmp_path / str(seed)) for seed in range(4)]
    assert any(done)
