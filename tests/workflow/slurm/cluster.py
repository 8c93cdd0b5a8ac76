"""A Slurm cluster on one machine, for tests: a controller and three nodes of two GPUs, none of them real.

    python tests/workflow/slurm/cluster.py up FOLDER      prints the environment in which sbatch finds it
    python tests/workflow/slurm/cluster.py down FOLDER    also ends what its jobs have left behind

It needs the Debian packages that tests/workflow/slurm/install.sh fetches, no systemd and no root, writes to
nothing but its folder, and leaves a cluster that the machine belongs to alone.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

NODES = ("n1", "n2", "n3")
DAEMONS = ("munged", "slurmctld", "slurmd")
_started: list[subprocess.Popen] = []  # who forgets a process that it has started is warned

# A real GPU is a character device; what it is a device of, Slurm does not ask.
GRES = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"

CONFIGURATION = """\
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/state/%n.pid
SlurmdSpoolDir={folder}/spool-%n
AccountingStorageType=accounting_storage/none
MpiDefault=none
# neither cgroups nor systemd: processes are followed through /proc
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# a cluster forgets its finished jobs after MinJobAge; its nodes claim more than the machine has
MinJobAge=3600
SlurmdParameters=config_overrides
# a busy machine is no reason to declare a node dead
SlurmdTimeout=300
MessageTimeout=60
KillWait=5
GresTypes=gpu
{nodes}
PartitionName=cpu Nodes=ALL Default=YES
PartitionName=gpu Nodes=ALL
"""


def missing() -> list[str]:
    """Programs that a cluster needs and that are not here."""
    return [name for name in (*DAEMONS, "sbatch", "srun", "squeue", "scontrol", "scancel") if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def up(folder: str | Path, seconds: float = 60) -> dict[str, str]:
    """Start the cluster and wait until its nodes are idle.

    Parameters
    ----------
    folder : path
        For everything that it writes.  Made if need be; its path is at most 80 characters long, because sockets
        lie in it.
    seconds : float
        How long to wait.

    Returns
    -------
    dict
        Environment variables with which sbatch, squeue and so on, and the jobs, find this cluster.

    Raises
    ------
    ValueError
        Slurm is not installed, or the path is too long.
    TimeoutError
        The nodes do not become idle; the end of every log is in the text.
    """
    if missing():
        raise ValueError(f"not installed: {', '.join(missing())}; install Slurm by tests/workflow/slurm/install.sh")
    folder = Path(folder).resolve()
    if len(str(folder)) > 80:
        raise ValueError(f"{folder}: too long a path for the sockets of Slurm; name a folder nearer to the root")
    environment = _configure(folder)
    munge = folder / "munge"
    _start(folder, "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
           f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed")  # fmt: skip
    _wait(lambda: (munge / "socket").exists(), seconds, folder)
    start_controller(folder, seconds)
    for node in NODES:
        _start(folder, "slurmd", "-D", "-N", node)
    _wait(lambda: ask(folder, "sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%T").split()
          == ["idle"] * len(NODES), seconds, folder)  # fmt: skip
    return environment


def kill_controller(folder: Path) -> None:
    """Kill the scheduler's daemon, slurmctld, by SIGKILL; nodes and jobs stay as they are."""
    (file,) = (folder / "pids").glob("*-slurmctld")
    _end([int(file.read_text())], signals=[signal.SIGKILL])
    file.unlink()


def start_controller(folder: Path, seconds: float = 60) -> None:
    """Start slurmctld and wait until it answers; it goes on with what an earlier one has left on the disk."""
    _start(folder, "slurmctld", "-D")
    _wait(lambda: "UP" in ask(folder, "scontrol", "ping").split(), seconds, folder)


def down(folder: str | Path) -> None:
    """Stop the cluster: its jobs, its daemons, and every process that still carries its configuration."""
    folder = Path(folder).resolve()
    ask(folder, "scancel", f"--user={getpass.getuser()}")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and ask(folder, "squeue", "--noheader"):
        time.sleep(0.2)
    _end([int(file.read_text()) for file in sorted((folder / "pids").iterdir())])
    # without cgroups, a job that was cancelled can leave children
    ours = f"SLURM_CONF={folder}/slurm.conf".encode()
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if ours in variables and any(each.startswith(b"SLURM_JOB_ID=") for each in variables):
                left.append(int(entry.name))
    _end(left)
    shutil.rmtree(folder / "pids")


def environment(folder: str | Path) -> dict[str, str]:
    """Environment variables with which sbatch, squeue and so on, and the jobs, find the cluster of a folder."""
    return {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{os.environ['PATH']}"}


def ask(folder: str | Path, *command: str) -> str:
    """What a command of Slurm prints, or "" if it fails."""
    done = subprocess.run(command, env=os.environ | environment(folder), capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _configure(folder: Path) -> dict[str, str]:
    for name in ("bin", "munge", "state", "pids", "logs", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().partition(".")[0]
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=16000 Gres=gpu:2"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    text = CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser(), ports=ports, nodes=nodes)
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(GRES)
    (folder / "munge" / "key").write_bytes(secrets.token_bytes(128))
    (folder / "munge" / "key").chmod(0o400)
    # Snakemake's plugin takes all variables SLURM_* from the jobs, and then calls srun
    wrapper = folder / "bin" / "srun"
    conf, srun = shlex.quote(f"{folder}/slurm.conf"), shlex.quote(_program("srun"))
    wrapper.write_text(f'#!/bin/sh\nexport SLURM_CONF={conf}\nexec {srun} "$@"\n')
    wrapper.chmod(0o755)
    return environment(folder)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(folder: Path, name: str, *arguments: str) -> None:
    number = len(list((folder / "pids").iterdir()))
    with open(folder / "logs" / f"{number}-{name}", "wb") as log:
        process = subprocess.Popen(
            [_program(name), *arguments], env=os.environ | environment(folder), stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _started.append(process)
    (folder / "pids" / f"{number}-{name}").write_text(str(process.pid))


def _end(pids: list[int], seconds: float = 10, signals: Iterable[int] = (signal.SIGTERM, signal.SIGKILL)) -> None:
    """Ask processes to end, and end those that have not after some seconds."""
    for number in signals:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while (pids := [pid for pid in pids if _lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)


def _lives(pid: int) -> bool:
    for process in _started:
        process.poll()  # buries it
    with contextlib.suppress(OSError):
        # the state follows the name, which is in parentheses; Z: ended, and nobody has asked
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _wait(ready, seconds: float, folder: Path) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{log.name}: {log.read_text()[-600:]}" for log in sorted((folder / "logs").iterdir()))
            down(folder)
            raise TimeoutError(f"Slurm did not start within {seconds:.0f} s\n{logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["up", folder]:
            print("".join(f"export {key}={shlex.quote(value)}\n" for key, value in up(folder).items()), end="")
        case ["down", folder]:
            down(folder)
        case _:
            sys.exit(__doc__)
