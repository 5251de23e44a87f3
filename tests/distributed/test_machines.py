"""Two machines: network namespaces with an address each, joined by a wire that can be cut."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.core.errors import PeerError
from tests.conftest import finetune_words
from tests.launching import BIN, Launched, launch

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.thorough]
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29513
STEPS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 16,
    "max_steps": 60,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": 30,
    "save_steps": 5,
    "logging_strategy": "steps",
    "logging_steps": 1,
}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Names of the two namespaces; each calls its end of the wire by its own name."""
    names = [f"finetune{os.getpid()}-{i}" for i in range(2)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("-n", names[0], "link", "add", "wire0", "type", "veth", "peer", "name", "wire1", "netns", names[1])
            for i, (name, address) in enumerate(zip(names, ADDRESSES, strict=True)):
                ip("-n", name, "address", "add", f"{address}/24", "dev", f"wire{i}")
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", f"wire{i}", "up")
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this user may not make network namespaces: {error}")
        yield names
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def on(machines: list[str], folder: Path, words: list[str], by_torchrun: bool) -> Launched:
    """One process on each, by a torchrun there or by the variables of a platform."""
    commands, variables = [], []
    for node, machine in enumerate(machines):
        python, own = [sys.executable], {}
        if by_torchrun:
            nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node)]
            python = [str(BIN / "torchrun"), *nodes, "--master-addr", ADDRESSES[0], "--master-port", str(PORT)]
        else:
            own = {"RANK": node, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}
            own |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT}
        commands.append(["ip", "netns", "exec", machine, *python, "-m", "finetune.run", *words])
        # The name of this machine is no address in there.
        variables.append({**own, "GLOO_SOCKET_IFNAME": f"wire{node}"})
    return Launched(folder, commands, variables)


def test_a_machine_that_vanishes(prepared: Path, tmp_path: Path, machines: list[str]) -> None:
    """Nothing closes its connections. Both sides notice, and together again end with the weights of an unbroken run."""
    whole = launch(tmp_path / "whole", finetune_words(prepared, tmp_path / "whole", **STEPS))
    assert whole.codes() == [0, 0], whole.said()

    run = on(machines, tmp_path, finetune_words(prepared, tmp_path, **STEPS), by_torchrun=False)
    run.until((tmp_path / "pytorch" / "checkpoint-5" / "complete").exists)
    ip("-n", machines[1], "link", "set", "wire1", "down")
    cut = time.monotonic()
    assert run.codes(90) == [PeerError.exit_code] * 2, run.said()
    waited = time.monotonic() - cut
    print(f"both had ended after {waited:.0f} s")
    assert waited < 45
    for rank in (0, 1):
        assert f"process {1 - rank} of 2" in run.said(rank) and "was lost without an error message" in run.said(rank)
        assert run.said(rank).count("run ended: ") == 1 and "Traceback" not in run.said(rank)

    ip("-n", machines[1], "link", "set", "wire1", "up")
    resumed = on(machines, tmp_path, finetune_words(prepared, tmp_path, **STEPS, resume_from_checkpoint="true"), True)
    assert resumed.codes() == [0, 0], resumed.said()
    assert "going on from checkpoint-" in resumed.said()
    weights = [folder / "pytorch" / "model.safetensors" for folder in (tmp_path / "whole", tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
