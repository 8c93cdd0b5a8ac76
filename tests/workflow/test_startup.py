"""What a job does first and last: a device of its own, and a sentence when it fails or is stopped.

Processes are real; a package `torch` of a few lines stands for the GPUs that are not here.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dag.workflow import startup

ROOT = Path(__file__).parents[2]

# GPUs by name, those that CUDA_VISIBLE_DEVICES leaves to the process.
TORCH = """
import os
from types import SimpleNamespace

GPUS = ["GPU-a", "GPU-b"]
if "CUDA_VISIBLE_DEVICES" in os.environ:
    GPUS = [GPUS[int(number)] for number in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if number]
cuda = SimpleNamespace(
    is_available=lambda: bool(GPUS),
    device_count=lambda: len(GPUS),
    get_device_properties=lambda number: SimpleNamespace(uuid=GPUS[number]),
    set_device=lambda number: print("current", number),
)
backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: "APPLE" in os.environ))
"""
HOLD = "from dag.workflow import startup; print(startup.device(), startup.device(), flush=True); input()"


class Jobs:
    """Jobs that ask for their device, say which they got, and hold it until they read a line."""

    def __init__(self, folder: Path):
        self.folder, self.running, self.stderr = folder, [], (folder / "log.txt").open("w")
        (folder / "torch.py").write_text(TORCH)

    def start(self, **environment: str) -> subprocess.Popen:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "SLURM_"))}
        path = {"PYTHONPATH": f"{self.folder}:{ROOT}", "TMPDIR": str(self.folder)}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD], text=True, env=clean | path | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr,
        )  # fmt: skip
        self.running.append(process)
        return process

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()


@pytest.fixture
def jobs(tmp_path):
    made = Jobs(tmp_path)
    yield made
    for process in made.running:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    made.stderr.close()


def device(process: subprocess.Popen) -> str:
    """What the job got; it is the same however often it asks."""
    lines = [process.stdout.readline().split()]
    if lines[0][0] == "current":
        lines.append(process.stdout.readline().split())
        assert lines[0][1] == lines[1][0].removeprefix("cuda:")
    first, second = lines[-1]
    assert first == second
    return first


def test_jobs_get_devices_of_their_own_and_a_killed_one_leaves_its_to_who_waits(jobs):
    first, second = jobs.start(), jobs.start()
    taken = {device(first), device(second)}
    assert taken == {"cuda:0", "cuda:1"}
    third = jobs.start()
    deadline = time.monotonic() + 30
    while "waiting" not in jobs.log() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2.5)  # looks again several times, and says so once
    assert third.poll() is None and jobs.log() == "other jobs hold all 2 GPUs: waiting for one\n"
    first.kill()
    first.wait()
    free = device(third)
    third.communicate("\n")
    # and who has ended as it should leaves its device as well
    assert device(jobs.start()) == free


def test_a_device_is_known_by_its_identity_and_not_by_its_number(jobs):
    assert device(jobs.start(CUDA_VISIBLE_DEVICES="1")) == "cuda:0"
    # of both GPUs the second is taken, under whatever number
    assert device(jobs.start()) == "cuda:0"
    waiting = jobs.start(CUDA_VISIBLE_DEVICES="1,0")
    time.sleep(1.5)
    assert waiting.poll() is None
    assert jobs.log() == "other jobs hold all 2 GPUs: waiting for one\n"


def test_what_slurm_gives_a_job_is_taken(jobs):
    """Two jobs of Slurm on one GPU is what somebody has asked Slurm for."""
    given = {"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_ID": "7"}
    assert [device(jobs.start(**given)) for _ in range(2)] == ["cuda:0", "cuda:0"]
    # inside one allocation of several GPUs the jobs share them out
    several = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_ID": "7"}
    assert {device(jobs.start(**several)) for _ in range(2)} == {"cuda:0", "cuda:1"}


def test_without_gpus_the_device_is_the_cpu(jobs):
    assert [device(jobs.start(CUDA_VISIBLE_DEVICES="")) for _ in range(2)] == ["cpu", "cpu"]


def test_apples_gpu_is_taken_where_there_is_no_other(jobs):
    assert device(jobs.start(CUDA_VISIBLE_DEVICES="", APPLE="")) == "mps"
    assert not list(jobs.folder.rglob("*.lock"))


def test_two_claims_of_one_process_are_two_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "_held", [])
    assert [startup.claim(["a", "b"], tmp_path / "locks") for _ in range(2)] == [0, 1]
    for lock in startup._held:
        lock.close()


# Sentences

SCRIPT = """
import sys, time
from dag.workflow.startup import start
start(sys.argv[1])
from dag.workflow import store
def work():
    {body}
work()
"""


def run(tmp_path: Path, body: str, stop: signal.Signals | None = None) -> tuple[int, str]:
    """A job with this body; `stop` is sent as soon as the job has said "ready"."""
    log = tmp_path / "log.txt"
    body = "\n    ".join(body.splitlines())
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body), str(log)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    if stop is not None:
        deadline = time.monotonic() + 30
        while not (log.exists() and "ready" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(stop)
    return process.wait(30), log.read_text()


def test_errors_of_the_project_are_a_sentence_and_others_a_traceback(tmp_path):
    code, text = run(tmp_path, "store.read_header('nothing.h5')")
    assert code == 1 and text == "Error: nothing.h5: no such shard; run the workflow to make it\n"
    failed = (
        "class AcceleratorError(RuntimeError): pass\nraise AcceleratorError('CUDA error: device lost\\nCompile with')"
    )
    code, text = run(tmp_path, failed)
    assert code == 1 and text == (
        "Error: the GPU has failed (CUDA error: device lost); what is finished is kept: start again to go on\n"
    )
    code, text = run(tmp_path, "int('x')")
    assert code == 1 and text.startswith("Traceback") and "invalid literal" in text


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_stopped_says_where_it_was(tmp_path, interruptible, stop):
    body = """try:
    print("ready")
    time.sleep(30)
except KeyboardInterrupt as interruption:
    interruption.add_note("at image 7")
    raise
finally:
    print("closed")"""
    code, text = run(tmp_path, body, stop)
    assert code != 0
    assert (
        text == f"ready\nclosed\nStopped by {stop.name}, at image 7; what is finished is kept: start again to go on\n"
    )


def test_a_second_sigterm_does_not_disturb_the_closing(tmp_path):
    body = """import os, signal
try:
    print("ready")
    time.sleep(30)
finally:
    os.kill(os.getpid(), signal.SIGTERM)
    print("closed")"""
    code, text = run(tmp_path, body, signal.SIGTERM)
    assert code != 0 and re.fullmatch(r"ready\nclosed\nStopped by SIGTERM; what is finished is kept.*\n", text)
