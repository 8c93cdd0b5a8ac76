"""Fixtures and the conditions under which marked tests are skipped; the markers stand in pyproject.toml."""

import functools
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def _no_shared() -> str | None:
    return None if SHARED.is_dir() else f"no folder {SHARED}: not compared with the real images and weights in it"


@functools.cache
def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device: not checked on a GPU"


@functools.cache
def _no_slurm() -> str | None:
    from slurm import cluster

    missing = cluster.missing()
    return (
        f"not installed: {', '.join(missing)}; nothing is submitted to Slurm, see make slurm-test" if missing else None
    )


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _no_browser() -> str | None:
    return None if _browser() else "Chromium is not installed: the page is not opened"


# Marker -> why its tests cannot run here, or None.
LACKING = {"browser": _no_browser, "shared": _no_shared, "gpu": _no_gpu, "slurm": _no_slurm}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="modules, and the tests of each, in random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle within modules, too: their fixtures (whole runs of the workflow) are made once."""
    if (seed := config.getoption("shuffle")) is None:
        return
    order = random.Random(seed)
    place = {item.nodeid: order.random() for item in items}
    module = {path: order.random() for path in sorted({str(item.path) for item in items})}
    items.sort(key=lambda item: (module[str(item.path)], place[item.nodeid]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here and say why; what was asked for by `-m` fails instead of passing as skipped."""
    asked = set(re.findall(r"\w+", item.config.getoption("markexpr")))
    if item.get_closest_marker("full") and "full" not in asked:
        pytest.skip("whole experiments on full-size networks take half an hour: make smoke runs them")
    for marker, lacking in LACKING.items():
        marked = item.get_closest_marker(marker) or marker in item.fixturenames
        if marked and (reason := lacking()):
            (pytest.fail if marker in asked else pytest.skip)(reason)


@pytest.fixture(scope="module")
def workflow(tmp_path_factory) -> Path:
    """A copy of the workflow: nobody edits it while the tests run, and it stands elsewhere than it is run."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, copy)
    for name in ("rules", "scripts", "config", "dag", "report", "profiles"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def interruptible():
    """Processes that a test starts heed SIGINT, also where the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def browser() -> str:
    """Chromium, under one of its names."""
    return _browser()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, annotations and weights beside the checkout."""
    return SHARED
