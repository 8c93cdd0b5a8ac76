"""Fixtures and the conditions under which marked tests are skipped; the markers stand in pyproject.toml."""

import functools
import os
import shutil
import signal
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

SHARED = Path(__file__).parents[1].parent / "shared"
NO_SHARED = f"no folder {SHARED}: not compared with the real images, annotations and weights in it"


@functools.cache
def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        pytest.skip(NO_SHARED)
    if item.get_closest_marker("slurm") and shutil.which("sbatch") is None:
        pytest.skip("no sbatch on this machine: nothing is submitted to Slurm; make slurm-test brings one")
    if item.get_closest_marker("full") and "full" not in item.config.getoption("markexpr"):
        pytest.skip("whole experiments on full-size networks take half an hour: make smoke runs them")
    if item.get_closest_marker("gpu") and not _cuda_is_available():
        pytest.skip("no CUDA device: not checked on a GPU")


@pytest.fixture
def interruptible():
    """Processes that a test starts heed SIGINT, also where the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, annotations and weights beside the checkout; skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED)
    return SHARED
