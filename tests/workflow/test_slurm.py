"""The workflow on Slurm, with profiles/slurm: jobs are submitted, cancelled, moved to other nodes, and share a node.

Jobs, Snakemake and the scheduler are killed meanwhile, and Snakemake is started again as profiles/README.md says.

The cluster is one of three nodes with two GPUs each, all of them this machine and none of them real
(tests/workflow/slurm/cluster.py); `make slurm-test` installs what it needs.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from overlays import merge
from slurm import cluster
from test_workflow import SUM, TINY, scores

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SOURCE = "mini-fcn-alex"
COST = {"mem_mb": 1500, "forward": 1, "iteration": 1, "iterations": 2}

# One shard.  The authors' rules push what is not recognised too, so that three steps of training suffice.
OVERLAY = merge(
    TINY,
    {
        "shard_size": 3,
        "attacks": {"segmentation": {"rules": "authors"}},
        "variants": {"long": {"iterations": 3}},
        "tables": {"small": {"perturbations": ["none", SOURCE, SUM]}},
        "networks": {SOURCE: {"architecture": f"{ROOT}/tests/workflow/slurm/network.py:build"}},
    },
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Iterator[Path]:
    """A cluster that runs, by its folder."""
    folder = tmp_path_factory.mktemp("slurm") / "toy"
    try:
        cluster.up(folder)
        yield folder
    finally:
        cluster.down(folder)


@pytest.fixture(scope="module")
def start(toy, workflow) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start Snakemake on the cluster in a folder; what it prints goes to `printed.txt` there."""
    processes = []

    def start(folder: Path, *targets: str, overlay: dict = OVERLAY) -> subprocess.Popen:
        (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(workflow / "Snakefile"), *targets]
        command += ["--workflow-profile", str(workflow / "profiles" / "slurm"), "--configfile", "overlay.yaml"]
        # the toy keeps no accounts, and its jobs take seconds
        command += ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"]
        environment = os.environ | cluster.environment(toy) | {"OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        with open(folder / "printed.txt", "w") as printed:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory) -> Path:
    """A run that is complete."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    assert start(folder, "small").wait(600) == 0, (folder / "printed.txt").read_text()
    return folder


@pytest.fixture
def trained(finished, tmp_path) -> Path:
    """A copy of it that has the networks and no result."""
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    for name in ("results", "logs"):
        shutil.rmtree(copy / name)
    return copy


def submitted(toy: Path, folder: Path, *what: str) -> list[dict[str, str]]:
    """What Slurm knows of the jobs that were submitted from a folder, in their order; `what`: parts of the comment."""
    lines = cluster.ask(toy, "scontrol", "show", "job", "--oneliner").splitlines()
    every = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]
    every = [job for job in every if job.get("WorkDir") == str(folder)]
    return sorted(
        (job for job in every if all(part in job["Comment"] for part in what)), key=lambda job: int(job["JobId"])
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 180):
    """What the condition returns as soon as that is true, while Snakemake runs."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, "Snakemake has ended"
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.1)
    return found


def perturbation(source: str = SOURCE) -> str:
    return f"results/tiny/mini-test/perturbations/{source}/0000.h5"


def said(folder: Path, source: str = SOURCE) -> str:
    """The log of the job that attacks a source."""
    log = folder / f"logs/perturb/tiny/mini-test/{source}/0000.txt"
    return log.read_text() if log.exists() else ""


def at_work(toy: Path, folder: Path, number: int) -> dict[str, str] | None:
    """The `number`-th job that attacks SOURCE, if it runs and is at its second image: two steps, three passes each."""
    jobs = submitted(toy, folder, "rule_perturb", SOURCE)
    if len(jobs) == number and jobs[-1]["JobState"] == "RUNNING":
        text = said(folder)
        if f"job {jobs[-1]['JobId']}," in text and text.count("96 x 128") > 3:
            return jobs[-1]
    return None


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def unlock(start: Callable[..., subprocess.Popen], folder: Path) -> None:
    assert start(folder, "--unlock").wait(60) == 0, (folder / "printed.txt").read_text()


def test_every_job_of_a_run_is_submitted_and_the_tables_are_made(toy, finished):
    for kind in ("csv", "md", "tex", "svg", "png"):
        assert (finished / "results" / "tiny" / "tables" / f"small.{kind}").stat().st_size
    jobs = submitted(toy, finished)
    rules = sorted(job["Comment"].removeprefix("rule_").partition("_wildcards")[0] for job in jobs)
    assert rules == sorted(
        ["make_mini_train", "make_mini_test", "make_mini_objects", *["check_images"] * 3,
         *["pretrain", "train", "perturb"] * 2, "combine", "predict", "score", "tabulate"]
    )  # fmt: skip
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    # nobody asked for a GPU, so Slurm gives none
    assert {job["Partition"] for job in jobs} == {"cpu"}
    assert not [job for job in jobs if "gpu" in job["TRES"] or "TresPerJob" in job]
    assert "GPU None" in said(finished)
    # memory and run time are those of the rule, or else of the profile
    asked = {job["Comment"]: (job["MinMemoryNode"], job["TimeLimit"]) for job in jobs}
    assert asked["rule_train_wildcards_mini-fcn-alex"] == ("2000M", "00:30:00")
    assert asked["rule_make_mini_test"] == ("4000M", "01:00:00")


def test_a_run_whose_job_was_cancelled_twice_ends_with_the_same_numbers(toy, start, finished, trained):
    target = "results/tiny/scores/small.json"
    process = start(trained, target)
    # the profile submits it once more
    for number in (1, 2):
        job = wait_for(lambda number=number: at_work(toy, trained, number), process)
        cluster.ask(toy, "scancel", job["JobId"])
    printed = trained / "printed.txt"
    assert process.wait(300) == 1, printed.read_text()
    assert not (trained / perturbation()).exists()
    assert [job["JobState"] for job in submitted(toy, trained, "rule_perturb", SOURCE)] == ["CANCELLED"] * 2

    assert start(trained, target).wait(600) == 0, printed.read_text()
    assert scores(trained, "small") == scores(finished, "small")
    for source in (SOURCE, "mini-fr-zf-07"):
        assert (trained / perturbation(source)).read_bytes() == (finished / perturbation(source)).read_bytes()
    # the last of its jobs had one image left to do
    assert f"{SOURCE}: 1 of 1" in said(trained)


def test_a_node_that_is_drained_ends_its_job_and_gets_no_other(toy, start, finished, trained):
    process = start(trained, perturbation(f"{SOURCE}.permuted-1"))
    job = wait_for(lambda: at_work(toy, trained, 1), process)
    node = job["NodeList"]
    cluster.ask(toy, "scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        assert process.wait(300) == 0, (trained / "printed.txt").read_text()
        first, second = submitted(toy, trained)
        assert (first["NodeList"], first["JobState"]) == (node, "COMPLETED")
        assert second["NodeList"] in set(cluster.NODES) - {node} and "rule_control" in second["Comment"]
        assert (trained / perturbation()).read_bytes() == (finished / perturbation()).read_bytes()
    finally:
        cluster.ask(toy, "scontrol", "update", f"nodename={node}", "state=resume")


def test_a_run_goes_on_while_the_scheduler_is_killed_and_started_again(toy, start, finished, trained):
    process = start(trained, perturbation())
    wait_for(lambda: at_work(toy, trained, 1), process)
    cluster.kill_controller(toy)
    cluster.start_controller(toy)
    assert process.wait(300) == 0, (trained / "printed.txt").read_text()
    (job,) = submitted(toy, trained)
    assert job["JobState"] == "COMPLETED"
    assert (trained / perturbation()).read_bytes() == (finished / perturbation()).read_bytes()


def test_after_the_kill_of_the_scheduler_and_of_snakemake_nothing_is_computed_again(toy, start, finished, trained):
    process = start(trained, perturbation())
    name = wait_for(lambda: at_work(toy, trained, 1), process)["JobName"]
    cluster.kill_controller(toy)
    kill(process)
    # the job needs neither of them
    shard = trained / perturbation()
    deadline = time.monotonic() + 60
    while not shard.exists():
        assert time.monotonic() < deadline, said(trained)
        time.sleep(0.1)
    made = shard.stat().st_ino
    cluster.start_controller(toy)

    cluster.ask(toy, "scancel", "--name", name)
    unlock(start, trained)
    assert start(trained, perturbation()).wait(300) == 0, (trained / "printed.txt").read_text()
    assert shard.stat().st_ino == made and shard.read_bytes() == (finished / perturbation()).read_bytes()


def test_the_job_of_a_run_that_was_killed_is_never_a_second_writer(toy, start, finished, trained):
    process = start(trained, perturbation())
    wait_for(lambda: at_work(toy, trained, 1), process)
    kill(process)
    # it is held at its second image; who looks after it has forgotten to cancel it
    writer = json.loads((trained / f"{perturbation()}.parts" / "lock").read_text())["process"]
    os.kill(writer, signal.SIGSTOP)
    unlock(start, trained)
    again = start(trained, perturbation())
    refused = f"0000.h5: process {writer} on "
    try:
        wait_for(lambda: refused in said(trained) and "is writing it; wait for that process" in said(trained), again)
    finally:
        os.kill(writer, signal.SIGKILL)
    # the profile submits it once more: it goes on after the first image, and the job that was killed is not put back
    assert again.wait(300) == 0, (trained / "printed.txt").read_text()
    assert [job["JobState"] for job in submitted(toy, trained)] == ["FAILED", "FAILED", "COMPLETED"]
    assert "2 of 2" in said(trained) and f"process {writer}" in said(trained)
    assert (trained / perturbation()).read_bytes() == (finished / perturbation()).read_bytes()


def test_two_jobs_on_one_node_have_a_gpu_each(toy, start, trained):
    """A network with a `cost` asks for a GPU."""
    others = ",".join(cluster.NODES[1:])
    cluster.ask(toy, "scontrol", "update", f"nodename={others}", "state=drain", "reason=test")
    sources = (SOURCE, f"{SOURCE}@long")
    try:
        overlay = merge(OVERLAY, {"networks": {SOURCE: {"cost": COST}}})
        process = start(trained, *map(perturbation, sources), overlay=overlay)
        assert process.wait(300) == 0, (trained / "printed.txt").read_text()
    finally:
        cluster.ask(toy, "scontrol", "update", f"nodename={others}", "state=resume")
    jobs = submitted(toy, trained)
    assert {(job["Partition"], job["TresPerJob"], job["NodeList"]) for job in jobs} == {("gpu", "gres:gpu:1", "n1")}
    texts = "".join(said(trained, source) for source in sources)
    assert sorted(re.findall(r"node \w+, GPU \S+", texts)) == ["node n1, GPU 0", "node n1, GPU 1"]


def test_the_summed_perturbation_is_temporary_on_a_cluster_too(finished):
    assert not (finished / perturbation(SUM)).exists()
