#!/bin/sh
# The Debian packages for the tests that submit jobs to Slurm; nothing is started.
set -eu
missing=
for program in sbatch slurmctld slurmd munged; do
    PATH=$PATH:/usr/sbin command -v $program > /dev/null || missing="$missing $program"
done
test -n "$missing" || exit 0
if ! command -v apt-get > /dev/null; then
    echo "not installed:$missing; there is no apt-get here, install Slurm and MUNGE as your system does it" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo > /dev/null; then
    as_root=sudo
else
    echo "not installed:$missing; ask root to run: apt-get install slurmctld slurmd slurm-client munge" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
packages() {
    $as_root apt-get install --yes --quiet --no-install-recommends slurmctld slurmd slurm-client munge
}
# the lists of a fresh machine are empty or old
packages || { $as_root apt-get update --quiet && packages; } || {
    echo "not installed:$missing; apt-get could not install slurmctld, slurmd, slurm-client and munge (see above)" >&2
    exit 1
}
