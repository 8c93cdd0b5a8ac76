"""The lock: one holder at a time, and none that is dead."""

import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dag.workflow import lock

HERE = Path(__file__).parent
WHAT = "results/a.h5"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "a.h5.parts" / "lock"


def owner(**changes) -> str:
    """Content of the lock file of this process, changed."""
    with tempfile.TemporaryDirectory() as folder, lock.held(Path(folder, "lock"), WHAT):
        lines = dict(line.partition("=")[::2] for line in Path(folder, "lock").read_text().splitlines())
    lines |= {"token": "0" * 32} | {name: str(value) for name, value in changes.items()}
    return "".join(f"{name}={value}\n" if value else f"{name}\n" for name, value in lines.items())


def left(path: Path, content: str, age: float = 0) -> None:
    """A lock file as somebody may have left it, touched `age` seconds ago."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - age,) * 2)


def taken(path: Path) -> bool:
    with lock.held(path, WHAT) as check:
        check()
        return f"pid={os.getpid()}\n" in path.read_text()


def test_a_lock_is_there_while_it_is_held(path):
    with lock.held(path, WHAT) as check:
        check()
        assert f"pid={os.getpid()}\n" in path.read_text() and f"host={platform.node()}" in path.read_text()
    assert not path.exists()
    assert taken(path)


def test_it_falls_with_an_error_too(path):
    with pytest.raises(ZeroDivisionError), lock.held(path, WHAT):
        raise ZeroDivisionError
    assert not path.exists()


def test_who_lives_keeps_the_lock(path):
    left(path, owner(), age=10 * lock.LIMIT)  # of this machine: the system knows that it lives, however old it is
    sentence = f"^{WHAT}: process {os.getpid()} on {platform.node()} is writing it; wait for that process or stop it$"
    with pytest.raises(ValueError, match=sentence):
        taken(path)
    assert path.exists()


def ended() -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child


def test_the_lock_of_a_dead_process_is_taken_at_once(path):
    child = ended()
    left(path, owner(pid=child.pid))
    begin = time.monotonic()
    assert taken(path)
    assert time.monotonic() - begin < lock.LIMIT / 4


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell when a process started")
def test_a_dead_process_is_known_by_its_start(path):
    left(path, owner(start=1))  # its number belongs to another one now, this one
    assert taken(path)


@pytest.mark.parametrize("wait", [False, True])
def test_a_lock_of_another_machine_falls_with_time(path, monkeypatch, capsys, wait):
    monkeypatch.setattr(lock, "LIMIT", 1.0)
    monkeypatch.setattr(lock, "BEAT", 0.3)
    left(path, owner(host="node7", pid=5, duration=1.0))
    begin = time.monotonic()
    with lock.held(path, WHAT, wait) as check:
        check()
    assert 0.9 < time.monotonic() - begin < 30
    assert capsys.readouterr().err.count("waiting, process 5 on node7 is writing it or died just now") == 1


def test_a_lock_that_was_cut_off_falls_with_time(path):
    for content in ("filelock/2\npi", "garbage"):
        left(path, content)
        assert taken(path)


def test_an_empty_lock_is_removed(path, monkeypatch):
    """Its maker was killed before it could write who it was."""
    monkeypatch.setattr(lock, "BEAT", 0.5)
    left(path, "")
    assert taken(path)
    assert not list(path.parent.iterdir())


def test_a_lock_of_another_machine_that_is_touched_is_kept(path):
    left(path, owner(host="node7", pid=5))
    thread = threading.Timer(0.5, os.utime, [path])
    thread.start()
    with pytest.raises(ValueError, match=f"{WHAT}: process 5 on node7 is writing it; wait for that process or stop it"):
        taken(path)
    thread.join()
    assert path.exists()


def test_a_holder_touches_its_lock(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with lock.held(path, WHAT):
        os.utime(path, (0, 0))
        time.sleep(0.3)
        assert time.time() - path.stat().st_mtime < 10
    assert not path.exists()


def test_who_has_lost_the_lock_is_told_and_leaves_it_to_the_other(path):
    with lock.held(path, WHAT) as check:
        other = owner(host="node7", pid=5)
        path.unlink()
        path.write_text(other)
        with pytest.raises(ValueError, match=f"{WHAT}: process 5 on node7 has taken over"):
            check()
    assert "node7" in path.read_text()


CROWD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from dag.workflow import lock
lock.LOOK = 0.005
number, path, inside = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
for turn in range(8):
    with lock.held(path, "a.h5", wait=True) as check:
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another one is in here
        time.sleep(0.002)
        check()
        inside.unlink()
        print(number, flush=True)
        if turn == 7:
            os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("locking", ["TRUE", "FALSE"])
def test_a_crowd_that_dies_one_by_one_is_never_two_at_once(path, tmp_path, locking):
    """Eight turns each, and every process is killed while it holds the lock; the others go on."""
    program = [sys.executable, "-c", CROWD.format(root=str(HERE.parents[1]))]
    crowd = [
        subprocess.Popen(
            [*program, str(number), str(path), str(tmp_path / "inside")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"HDF5_USE_FILE_LOCKING": locking},
        )
        for number in range(4)
    ]
    # all are waited for at once: a dead process counts as alive until its parent has noticed
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda child: child.communicate(timeout=60), crowd))
    for number, (child, (out, errors)) in enumerate(zip(crowd, outputs, strict=True)):
        assert out.split() == [str(number)] * 8, errors
        assert child.returncode == -signal.SIGKILL
        assert "Error" not in errors, errors
    assert taken(path)


TAKER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from dag.workflow import lock
lock.LOOK = 0.001
for line in sys.stdin:
    path, inside, start = line.split()
    while time.time() < float(start):
        pass
    with lock.held(Path(path), "a.h5", wait=True) as check:
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another one is in here
        check()
        os.unlink(inside)
    print("done", flush=True)
"""


@pytest.mark.slow
def test_takers_of_a_stale_lock_are_never_two_at_once(tmp_path):
    """Four processes see the lock of a dead one at the same moment, 500 times."""
    child, program = ended(), [sys.executable, "-c", TAKER.format(root=str(HERE.parents[1]))]
    stale = owner(pid=child.pid)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    takers = [subprocess.Popen(program, **pipes) for _ in range(4)]
    try:
        for trial in range(500):
            path = tmp_path / str(trial) / "lock"
            left(path, stale)
            for taker in takers:
                print(path, path.parent / "inside", time.time() + 0.01, file=taker.stdin, flush=True)
            for taker in takers:
                assert taker.stdout.readline() == "done\n", (trial, taker.stderr.read())
    finally:
        for taker in takers:
            taker.stdin.close()
            taker.wait()
            taker.stdout.close()
            taker.stderr.close()
