"""Which processes a run has and how they were started: torchrun, Azure ML, mpirun, or one alone. No torch here."""

import os
import socket
import zlib
from collections.abc import Sequence

from finetune.core.errors import Fault, ParameterError

GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
LOOPBACK = "127.0.0.1"  # which other machines don't reach
AZURE_MPI_MASTER = "AZ_BATCH_MASTER_NODE"  # HOST:PORT of the machine of rank 0, in Azure ML's MPI jobs


def world_size() -> int:
    """Return the number of processes of this run, one for each device."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the number of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Return whether the rank of this process is 0, as it is where a run has one process."""
    return rank() == 0


def shares_terminal() -> bool:
    """Return whether the launcher mixes what processes print; Azure ML and `finetune pipeline` keep a log for each."""
    return world_size() > 1 and ("TORCHELASTIC_RUN_ID" in os.environ or OPEN_MPI["RANK"] in os.environ)


def on_one_machine() -> bool:
    """Return whether all processes of the run are on this machine, by the variables of its launcher."""
    address = os.environ.get("MASTER_ADDR", "")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    return local == world_size() or address in ("localhost", "::1") or address.startswith("127.")


def adopt_launcher(argv: Sequence[str]) -> list[str]:
    """Set the environment variables that PyTorch reads, whoever started the process.

    Return argv without the --local_rank of older launchers. Raises: ParameterError if variables are missing.
    """
    words = _take_local_rank(argv)
    _adopt_open_mpi()
    if os.environ.get("WORLD_SIZE") == "1":  # as Azure ML has it; alone, a process group would only cost time
        for name in GROUP:
            os.environ.pop(name, None)
    if world_size() > 1:
        missing = [name for name in NEEDED if not os.environ.get(name)]
        if missing:
            what = f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} " + ("is" if missing[1:] == [] else "are")
            fix = f"torchrun --nproc-per-node {world_size()} -m finetune.run …, which sets them all"
            raise ParameterError(Fault(f"{what} not set", why="the processes could not find each other", fix=fix))
        _share_cores()
    return words


def found_group_of_one() -> None:
    """Set the variables of a process group of one, for engines that don't run without a group."""
    if world_size() == 1:
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        os.environ |= {name: str(value) for name, value in alone.items()}
        os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(free_port())}


def free_port() -> int:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        return int(server.getsockname()[1])


def _take_local_rank(argv: Sequence[str]) -> list[str]:
    """Take out --local_rank, which torch.distributed.launch and the deepspeed launcher give to every process."""
    words: list[str] = []
    given = ""
    for word in argv:
        name, equals, value = word.partition("=")
        if name in ("--local_rank", "--local-rank"):
            given = value if equals else "next"
        elif given == "next":
            given = word
        else:
            words.append(word)
    if given.isdigit():
        os.environ.setdefault("LOCAL_RANK", given)
    return words


def _adopt_open_mpi() -> None:
    """Set the variables of a process of mpirun, which says who is who, but not where rank 0 listens."""
    if "RANK" in os.environ or OPEN_MPI["RANK"] not in os.environ:
        return
    os.environ |= {name: os.environ[theirs] for name, theirs in OPEN_MPI.items()}
    if "MASTER_ADDR" not in os.environ:
        azure = os.environ.get(AZURE_MPI_MASTER, "").partition(":")[0]
        if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
            os.environ["MASTER_ADDR"] = LOOPBACK
        elif azure:
            os.environ["MASTER_ADDR"] = azure
        else:
            fix = "mpirun -x MASTER_ADDR=HOST …, with the host that rank 0 runs on"
            raise ParameterError(Fault("mpirun started processes on several machines without MASTER_ADDR", fix=fix))
    if "MASTER_PORT" not in os.environ:  # the same for all processes of a job, another for the next job
        job = os.environ.get("PMIX_NAMESPACE", "")
        os.environ["MASTER_PORT"] = str(20000 + zlib.crc32(job.encode()) % 10000)


def _share_cores() -> None:
    """Share the cores: torchrun gives each process one if nothing is set; left alone, each would take all."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // local)))
