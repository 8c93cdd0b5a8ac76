"""Jobs that are killed: nothing that was done is lost, and the end is the same as without."""

import ast
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import test_store

from dag.workflow import encoding, lock, store

HERE = Path(__file__).parent
PATHS = [str(HERE.parents[1]), str(HERE), str(HERE.parent / "attack")]
START = f"import sys\nsys.path[:0] = {PATHS!r}\nimport test_resume\n"


def child(call: str, **options) -> subprocess.Popen:
    """A process that calls a function of this file."""
    return subprocess.Popen([sys.executable, "-c", START + f"test_resume.{call}"], text=True, **options)


def answer(call: str):
    """What a function of this file prints in a process of its own."""
    process = child(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return ast.literal_eval(out)


# A kill at every point


def points(folder: str) -> None:
    """Kill a writer at the first point, at the second one, ...; print for each what the next one had to compute.

    A point is a call that changes files, just before it is made; `os.fork` spares the start of a process.
    """
    folder, outcome = Path(folder), []
    os.fsync = lambda _: None  # what a kill leaves does not depend on it, and it is slow
    store.versions()
    lock.BEAT = 0.3  # what the next one waits where the kill came before the lock had a name in it
    while True:
        path = folder / f"{len(outcome)}.h5"
        process = os.fork()
        if process == 0:
            kill_at(len(outcome))
            test_store.write(path)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        kept = len(list(path.with_name(path.name + ".parts").glob("*.part")))
        there = path.exists()
        outcome.append((kept, there, len(test_store.write(path))))
        if not killed:
            break
    print(outcome)


def kill_at(point: int) -> None:
    """Let this process die at its so manieth call that changes files."""
    left = [point]

    def count():
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def watch(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            count()

    def before(function):
        def call(*arguments):
            count()
            return function(*arguments)

        return call

    sys.addaudithook(watch)
    os.write = before(os.write)
    encoding.PatientFile.write = before(encoding.PatientFile.write)


def test_a_kill_at_every_point_costs_at_most_one_image(tmp_path):
    outcome = answer(f"points({str(tmp_path)!r})")
    assert len(outcome) > 30
    images = len(test_store.IDS)
    for kept, there, computed in outcome:
        assert computed == (0 if there else images - kept)
    # more and more is kept, and once all is there nothing is computed any more
    assert [kept for kept, there, _ in outcome if not there] == sorted(kept for kept, there, _ in outcome if not there)
    assert {kept for kept, there, _ in outcome if not there} == set(range(images + 1))
    assert outcome[-1] == (0, True, 0)
    first, *others = sorted(tmp_path.iterdir())
    assert len(others) == len(outcome) - 1
    for other in others:
        assert other.read_bytes() == first.read_bytes()


# Kills at random moments, in the attack itself

KILLS = 20
COUNT = 30


def attack(folder: str, path: str, log: str) -> None:
    """Attack the images of a miniature, and note the id of each before and after it is stored."""
    import test_perturb
    import torch

    torch.set_num_threads(1)
    log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(attacks, _):
        for problem, attack in attacks:
            os.write(log, f"attacked {problem.name}\n".encode())
            yield problem, attack
            os.write(log, f"stored {problem.name}\n".encode())

    ids = [f"{number:06d}" for number in range(1, COUNT + 1)]
    test_perturb.perturbed("segmentation", Path(folder), ids, Path(path), progress=noted)


def attacks() -> None:
    """For every line of three names on standard input a process that runs `attack`, without the start of Python."""
    import test_perturb  # noqa: F401, torch is what takes long

    print("ready", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            attack(*ast.literal_eval(line))
            os._exit(0)
        print(process, flush=True)
        print(os.waitpid(process, 0)[1], flush=True)


def test_an_attack_that_is_killed_twenty_times_ends_as_if_it_never_was(tmp_path):
    from dag.data import mini

    mini.make_voc(tmp_path / "voc", {"Main/test": [f"{number:06d}" for number in range(1, COUNT + 1)]}, seed=5)
    server = child("attacks()", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(name: str) -> int:
        names = [str(tmp_path / part) for part in ("voc", f"{name}.h5", f"{name}.txt")]
        print(names, file=server.stdin, flush=True)
        return int(server.stdout.readline())

    def result() -> int:
        return int(server.stdout.readline())

    try:
        assert server.stdout.readline() == "ready\n"
        begin = time.monotonic()
        start("whole")
        assert result() == 0
        each = (time.monotonic() - begin) / COUNT
        rng, kills, path = np.random.default_rng(0), 0, tmp_path / "killed.h5"
        while not path.exists():
            process = start("killed")
            if kills < KILLS:
                # now and then before the first image is done, now and then after a few
                time.sleep(rng.uniform(0, 2 * each))
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if os.WIFSIGNALED(result()):
                kills += 1
            else:
                break
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(timeout=60)
    lines = [line.split() for line in (tmp_path / "killed.txt").read_text().splitlines()]
    attacked = [name for what, name in lines if what == "attacked"]
    assert len(set(attacked)) == COUNT and kills >= KILLS / 2
    # one image at most is attacked twice for a kill, and none that was stored
    assert len(attacked) <= COUNT + kills
    for number, (what, name) in enumerate(lines):
        assert what == "attacked" or ["attacked", name] not in lines[number:]
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    store.forget(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir() if "parts" in file.name) == []
    with store.reading(path, "perturbations") as file, store.reading(tmp_path / "whole.h5") as whole:
        for number in range(1, COUNT + 1):
            (first, known), (second, wanted) = (store.get(one, f"{number:06d}") for one in (file, whole))
            assert test_store.same_bits(first, second) and {**known, "active": 0} == {**wanted, "active": 0}
            assert known["active"].tolist() == wanted["active"].tolist()


# Two writers


def writer(path: str, wait: bool) -> None:
    """Write a shard, image by image; print which ones were computed here.

    One that would not wait for another stays at its first image until it is told to go on.
    """
    print("ready", flush=True)
    sys.stdin.readline()
    computed, ids = [], [f"{number:03d}" for number in range(20)]
    with store.writing(Path(path), "perturbations", ids, test_store.HEADER, wait=wait) as shard:
        for image_id in ids:
            if image_id not in shard.done:
                time.sleep(0.01)
                shard.put(image_id, test_store.array(image_id), test_store.ATTRIBUTES)
                computed.append(image_id)
                if not wait and len(computed) == 1:
                    sys.stdin.readline()
    print(computed, flush=True)


def together(path: Path, wait: bool, locking: str) -> list[tuple[int, int, str, str]]:
    """Two writers that start at one time: process, exit code, what it printed, and its errors."""
    environment = os.environ | {"HDF5_USE_FILE_LOCKING": locking}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    two = [child(f"writer({str(path)!r}, {wait})", env=environment, **pipes) for _ in range(2)]
    for one in two:
        assert one.stdout.readline() == "ready\n"
    for one in two:
        one.stdin.write("go\n")
        one.stdin.flush()
    if not wait:  # the one that is in stays there until the other is turned away, however slow that one is
        deadline = time.monotonic() + 60
        while all(one.poll() is None for one in two):
            assert time.monotonic() < deadline, "nobody was turned away"
            time.sleep(0.01)
    printed = [one.communicate(timeout=60) for one in two]
    return [(one.pid, one.returncode, *texts) for one, texts in zip(two, printed, strict=True)]


@pytest.mark.parametrize("locking", ["TRUE", "FALSE"])
def test_of_two_writers_one_is_refused(tmp_path, locking):
    path = tmp_path / "a.h5"
    (winner, _, out, _), (_, code, nothing, errors) = sorted(together(path, False, locking), key=lambda one: one[1])
    assert len(ast.literal_eval(out)) == 20 and code == 1 and nothing == ""
    holder = f"process {winner} on {platform.node()}"
    sentence = f"dag.workflow.store.BusyError: {path}: {holder} is writing it; wait for that process or stop it"
    assert errors.strip().splitlines()[-1] == sentence
    assert len(store.read_attributes(path)) == 20


def test_of_two_writers_that_wait_one_has_nothing_to_do(tmp_path):
    path = tmp_path / "a.h5"
    outcome = together(path, True, "FALSE")
    assert [code for _, code, _, _ in outcome] == [0, 0]
    assert sorted(len(ast.literal_eval(out)) for _, _, out, _ in outcome) == [0, 20]
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_waits_goes_on_where_a_killed_one_ended(tmp_path):
    path = tmp_path / "a.h5"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    first, second = (child(f"writer({str(path)!r}, True)", **pipes) for _ in range(2))
    for one in (first, second):
        assert one.stdout.readline() == "ready\n"
    first.stdin.write("go\n")
    first.stdin.flush()
    folder = tmp_path / "a.h5.parts"
    while len(list(folder.glob("*.part"))) < 5:
        time.sleep(0.005)
    second.stdin.write("go\n")
    second.stdin.flush()
    time.sleep(0.05)
    first.kill()
    first.communicate()  # a dead process counts as alive until its parent has noticed
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0 and 0 < len(ast.literal_eval(out)) <= 15
    test_store.write(tmp_path / "b.h5", ids=[f"{number:03d}" for number in range(20)])
    assert path.read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_writer_whose_lock_was_taken_stops_and_damages_nothing(tmp_path):
    """A process that stood still for minutes meets the one that has gone on in its place."""
    path, ids = tmp_path / "a.h5", test_store.IDS

    def goes_on(shard):
        shard.put(ids[0], test_store.array(ids[0]), test_store.ATTRIBUTES)
        (tmp_path / "other").write_text("filelock/2\npid=5\nhost=node7\n")
        os.replace(tmp_path / "other", tmp_path / "a.h5.parts" / "lock")
        shard.put(ids[1], test_store.array(ids[1]), test_store.ATTRIBUTES)

    sentence = "a.h5: process 5 on node7 has taken over, as this process was stopped for minutes"
    with (
        pytest.raises(ValueError, match=sentence),
        store.writing(path, "perturbations", ids, test_store.HEADER) as shard,
    ):
        goes_on(shard)
    (tmp_path / "a.h5.parts" / "lock").unlink()
    assert test_store.write(path) == ids[1:]
