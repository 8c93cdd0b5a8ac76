"""Start of every job of the workflow: logging, error messages, signals, choice of the device."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from dag.data import image_sets
from dag.data.readers import reader_of
from dag.workflow import contents, plan
from dag.workflow.files import file_digest

_held: list[IO] = []  # locks of the devices of this process, held until it ends


def start(log: str, threads: int = 1) -> None:
    """Send everything the job prints to its log, limit its threads, and stop in good order on SIGTERM.

    Call it before importing torch: import errors belong in the log, and the number of OpenMP
    threads is read once.  SIGTERM, which a scheduler sends some seconds before it kills (time limit,
    scancel), becomes a KeyboardInterrupt: files are closed, and the log says where the job stopped.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # operators that Apple's GPUs lack are computed on the CPU, with one line in the log for each
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)
    sys.excepthook = _sentence
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, _) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the closing of files
    raise KeyboardInterrupt(signal.Signals(number).name)


def _sentence(kind: type[BaseException], error: BaseException, trace) -> None:
    """Print errors of this project (ValueError, or OSError with our text) as the message alone, without a traceback.

    After an interruption, print where: functions that do the work add a note to the exception.
    """
    if issubclass(kind, KeyboardInterrupt):
        where = "".join(f", {note}" for note in getattr(error, "__notes__", []))
        by = str(error) or "SIGINT"
        print(f"Stopped by {by}{where}; what is finished is kept: start again to go on", file=sys.stderr)
        return
    if (
        kind.__name__ == "AcceleratorError"
    ):  # of torch, for a device that has vanished or failed; compared by name, since importing torch is slow
        reason = str(error).partition("\n")[0]
        print(f"Error: the GPU has failed ({reason}); what is finished is kept: start again to go on", file=sys.stderr)
        return
    innermost = trace
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    ours = Path(innermost.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1])
    # an OSError of the system has an errno
    if ours and (isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is None)):
        print(f"Error: {error}", file=sys.stderr)
        if isinstance(error, image_sets.ImageError):
            print(plan.OF_ONE_IMAGE, *getattr(error, "__notes__", []), file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def progress(items: Iterable, what: str, total: int | None = None, seconds: float = 30) -> Iterator:
    """Yield the items; show a bar on a terminal, a line every `seconds` in a log.  `total`: if they have no length."""
    total = len(items) if total is None else total
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total)
        return
    begin = last = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= seconds or number == total:
            last = now
            print(f"{what}: {number} of {total}, {now - begin:.0f} s", file=sys.stderr)


def identity(
    network: dict, image_set: dict, shard: str, code: str, kinds: Sequence[str] = ("image",)
) -> tuple[list, dict]:
    """Images of a shard, and everything that determines a network's output on them, for the header of a shard.

    Parameters
    ----------
    network : dict
        name, task, architecture, arguments, code, and files by role.
    image_set : dict
        name, format, classes, parts, size, sha256, shard_size.
    kinds : sequence of str
        What is read of every image, see `dag.workflow.contents.digests`.
    """
    reader = reader_of(image_set)
    images = image_sets.shard_of(reader.images(), shard, image_set["shard_size"])
    header = {
        "network": {name: value for name, value in network.items() if name != "files"},
        "weights": {role: file_digest(path) for role, path in network["files"].items()},
        "image_set": image_set,
        "ids": image_sets.digest(image_id for _, image_id in images),
        "contents": contents.digests(images, *kinds, reader=reader),
        "shard": shard,
        "code": code,
    }
    return images, header


@cache
def device() -> str:
    """The GPU of this job alone, "cuda:N", until the process ends; "mps" on Apple's; "cpu" where there is none.

    N counts the devices in CUDA_VISIBLE_DEVICES.  A job takes one that no other job of this user on this
    machine holds, and waits for one if necessary.  A Slurm job with a single GPU takes it without a lock:
    Slurm may share it on purpose.
    """
    import torch

    if not torch.cuda.is_available():
        return "mps" if torch.backends.mps.is_available() else "cpu"
    count = torch.cuda.device_count()
    if count == 1 and "SLURM_JOB_ID" in os.environ:
        number = 0
    else:
        # by UUID: N depends on CUDA_VISIBLE_DEVICES
        names = [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]
        number = claim(names, Path(tempfile.gettempdir(), f"dag-{os.getuid()}"))
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def claim(names: Sequence[str], folder: Path, seconds: float = 1) -> int:
    """Lock the first free one of these devices for this process, and return its position.

    A device is locked by an operating system lock on the file `folder`/`name`.lock, which is released when
    the process ends, however it ends.  `folder` must be on a local disk.  While all devices are locked,
    they are polled every few `seconds`; the log says so once.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    waiting = False
    while True:
        for position, name in enumerate(names):
            lock = open(folder / f"{name}.lock", "w")  # noqa: SIM115, closed when the process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                _held.append(lock)
                return position
        if not waiting:
            print(f"other jobs hold all {len(names)} GPUs: waiting for one", file=sys.stderr)
            waiting = True
        time.sleep(seconds)
