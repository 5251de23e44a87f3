"""Which processes there are, by the variables of each launcher."""

import os

import pytest

from finetune.core import launch
from finetune.core.errors import ParameterError

NAMES = (*launch.NEEDED, "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", launch.AZURE_MPI_MASTER)
MPI = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
AZURE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.4", "MASTER_PORT": "6105"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *launch.OPEN_MPI.values(), "PMIX_NAMESPACE"):
        monkeypatch.setenv(name, "")  # so that what adopt_launcher sets is taken back too
        monkeypatch.delenv(name)


def set_mpi(monkeypatch: pytest.MonkeyPatch, job: str = "77", **changed: str) -> None:
    for name, value in {**MPI, **changed}.items():
        monkeypatch.setenv(launch.OPEN_MPI[name], value)
    monkeypatch.setenv("PMIX_NAMESPACE", job)


@pytest.mark.parametrize(
    "given", [["--local_rank", "3"], ["--local_rank=3"], ["--local-rank=3"], ["--local-rank", "3"]]
)
@pytest.mark.parametrize("at", [0, 2, 4])
def test_local_rank_of_older_launchers(given: list[str], at: int) -> None:
    words = ["--task", "t", "--seed", "1"]
    assert launch.adopt_launcher([*words[:at], *given, *words[at:]]) == words
    assert launch.local_rank() == 3


def test_the_environment_wins_over_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    launch.adopt_launcher(["--local_rank=3"])
    assert launch.local_rank() == 1


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**AZURE, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    launch.adopt_launcher([])
    assert launch.world_size() == 1 and launch.is_main_process() and "LOCAL_RANK" not in os.environ
    launch.found_group_of_one()
    assert all(os.environ[name] for name in launch.NEEDED)


def test_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AZURE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    launch.adopt_launcher([])
    assert (launch.rank(), launch.local_rank(), launch.world_size()) == (1, 1, 2)
    assert not launch.is_main_process() and not launch.shares_terminal()
    assert os.environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("missing", [["MASTER_ADDR"], ["RANK", "LOCAL_RANK", "MASTER_PORT"]])
def test_variables_that_are_missing(monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> None:
    for name in set(AZURE) - set(missing):
        monkeypatch.setenv(name, AZURE[name])
    with pytest.raises(ParameterError, match="not set") as raised:
        launch.adopt_launcher([])
    assert ", ".join(missing) in str(raised.value) and "torchrun" in str(raised.value)


def test_mpirun_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    set_mpi(monkeypatch, RANK="1", WORLD_SIZE="2")
    launch.adopt_launcher([])
    assert (launch.rank(), launch.local_rank(), launch.world_size()) == (1, 1, 2)
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and launch.shares_terminal()
    port = os.environ["MASTER_PORT"]
    for name in launch.NEEDED:
        monkeypatch.delenv(name)
    set_mpi(monkeypatch, RANK="0", WORLD_SIZE="2")
    launch.adopt_launcher([])
    assert os.environ["MASTER_PORT"] == port  # the same for every process of a job
    for name in launch.NEEDED:
        monkeypatch.delenv(name)
    set_mpi(monkeypatch, job="78", RANK="0", WORLD_SIZE="2")
    launch.adopt_launcher([])
    assert os.environ["MASTER_PORT"] != port


def test_mpirun_on_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    set_mpi(monkeypatch)
    with pytest.raises(ParameterError, match="mpirun -x MASTER_ADDR=HOST"):
        launch.adopt_launcher([])
    monkeypatch.delenv("RANK")
    monkeypatch.setenv(launch.AZURE_MPI_MASTER, "10.0.0.4:6000")
    launch.adopt_launcher([])
    assert (launch.rank(), launch.world_size(), os.environ["MASTER_ADDR"]) == (3, 4, "10.0.0.4")


def test_torchrun_under_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    """One torchrun on each machine: what torchrun says counts."""
    set_mpi(monkeypatch)
    for name, value in AZURE.items():
        monkeypatch.setenv(name, value)
    launch.adopt_launcher([])
    assert (launch.rank(), launch.world_size()) == (1, 2)


@pytest.mark.parametrize(
    ("variables", "one"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, True),
        ({"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here.example.com"}, True),
        ({"LOCAL_WORLD_SIZE": "1"}, False),
        ({}, False),  # Azure ML doesn't promise LOCAL_WORLD_SIZE
        ({"MASTER_ADDR": "127.0.0.1"}, True),
        ({"MASTER_ADDR": "localhost", "LOCAL_WORLD_SIZE": "1"}, True),  # several torchruns here
        ({"MASTER_ADDR": "::1"}, True),
    ],
)
def test_one_machine(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], one: bool) -> None:
    for name, value in {**AZURE, **variables}.items():
        monkeypatch.setenv(name, value)
    assert launch.on_one_machine() == one
