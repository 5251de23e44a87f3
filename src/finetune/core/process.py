"""An entry point as a process: what it prints when it fails, its exit code, and how it ends."""

import atexit
import contextlib
import gc
import io
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from finetune.core import timing
from finetune.core.errors import FinetuneError, storage_error
from finetune.core.paths import leave_if_gone


def run_main(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Run an entry point; without `argv` it is that of this process, which ends with it.

    The exit code is that of the error's class. FINETUNE_TRACEBACK=1 adds the traceback to errors of ours; unexpected
    ones always have it.
    """
    # torch and transformers make a million objects on import, among which Python would look for cycles again and again.
    gc.set_threshold(50_000, 20, 100)
    code = 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # names in files may hold what no terminal shows
        sys.stdout.reconfigure(errors="backslashreplace")
    leave_if_gone()
    try:
        main(sys.argv[1:] if argv is None else argv)
    except FinetuneError as error:
        code = _say(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 141
    except Exception as error:
        known = storage_error(error)
        if known is None:
            raise
        code = _say(known)
    if argv is None and sys.gettrace() is None:  # a debugger wants to go on
        _end(code)
    if code:
        sys.exit(code)


def _say(error: FinetuneError) -> int:
    from finetune.core.console import speaks

    if os.environ.get("FINETUNE_TRACEBACK"):
        traceback.print_exc()
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun shows it below its own account of what failed
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": str(error)}), encoding="utf-8")
    if not speaks() and not error.known_to_all:
        time.sleep(timing.TURN)  # an error of all processes is said by the main one, and launchers then end the others
    if speaks() or not error.known_to_all:
        print(error, file=sys.stderr, flush=True)
    return error.exit_code


def _end(code: int) -> NoReturn:
    """End the process as Python does, but without freeing what is in memory.

    With torch that takes 2 s, in which a process that had done its work has been aborted ("terminate called without an
    active exception", one of two processes, once in some hundred runs).
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
