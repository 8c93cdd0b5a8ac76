"""The benchmark for a GPU runs, at a tiny size on a CPU, and times nothing if a result is wrong."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
NARROW = dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"), 4)


@pytest.fixture
def program(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("benchmark_on_a_gpu", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    cases = {
        "segmenter": module.Case("dag.networks.caffe.fcn:fcn8s_vgg16", {"widths": NARROW}, (40, 56), 0, 54, 1),
        "detector": module.Case(
            "dag.networks.caffe.faster_rcnn:faster_rcnn",
            {"body": "vgg16", "widths": NARROW | {"rpn": 4}, "short": 96, "long": 160}, (60, 80), 20, 41.4, 1,
        ),
    }  # fmt: skip
    monkeypatch.setattr(module, "CASES", cases)
    monkeypatch.setattr(module, "BACKEND", "eager")  # the one that compiles takes minutes
    return module


SMALL = ["--device", "cpu", "--batch", "2", "--iterations", "2"]


def test_every_variant_is_measured(program, capsys):
    assert program.main([*SMALL, "--modes", "eager", "innermost"]) == 0
    printed = capsys.readouterr().out
    for name in ("floor", "plain", "network", "eager", "innermost"):
        assert printed.count(f"\n  {name} ") == 2
    assert printed.count("G1  network / eager") == 2 and printed.count("G2  ") == 1
    assert "compiled" not in printed


@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_torch_compile_is_measured(program, capsys):
    try:
        assert program.main([*SMALL, "--modes", "compiled", "graphed"]) == 0
    finally:
        torch._dynamo.reset()
    printed = capsys.readouterr().out
    assert printed.count("\n  compiled ") == 2 and "graphed" not in printed  # a CPU has no graphs


def test_a_wrong_result_is_not_timed(program, monkeypatch):
    def wrong(network, x):
        straight = network.body
        network.body = lambda images: straight(images) * 1.001

    monkeypatch.setitem(program.CHANGES, "compiled", wrong)
    monkeypatch.setattr(program, "CASES", {"segmenter": program.CASES["segmenter"]})
    with pytest.raises(SystemExit, match="compiled: scores differ from the eager ones by 1.0e-03; nothing is measured"):
        program.main([*SMALL, "--modes", "compiled"])


def test_without_a_device_it_says_so(program, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device: this benchmark needs one"):
        program.main([])


# The check of a machine with a GPU


@pytest.fixture
def check(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("gpu", "gpu_check"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("gpu_check", FOLDER / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("gpu", None)


@pytest.mark.slow
def test_the_check_of_a_gpu_is_rehearsed_on_a_cpu(check, capsys):
    assert check.main(["--tiny", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    table = printed.rpartition("\n\n")[2]
    assert "FAILED" not in printed and "MISSED" not in table
    for row in ("E2 FCN-8s", "E2 R-FCN-RN101", "G1 fp32, segmenter", "G1 tf32, detector", "G2 tf32", "gpu tests"):
        assert row in table
    assert "pocket networks" in table and "no VOC and WEIGHTS given" in table


@pytest.mark.slow
@pytest.mark.shared
def test_the_pocket_networks_are_compared(check, shared, tmp_path):
    found = list(check.pocket(tmp_path, shared / "voc", shared / "weights", "cpu", 2, True))
    assert len(found) == 8 and {met for _, _, met in found} == {"met"}  # a CPU agrees with itself


def test_a_device_that_differs_is_found(check):
    here = {"status": ["converged"] * 10, "iterations": [50] * 10}
    here |= {"clean": np.array([60.0, 59.0, 61.0]), "perturbed": np.array([20.0, 18.0, 22.0])}
    there = here | {"status": ["converged"] * 9 + ["iteration limit"], "iterations": [50] * 9 + [59]}
    there["clean"] = here["clean"] + 0.9
    assert [met for *_, met in check.compared("net", here, there)] == ["met"] * 4
    worse = there | {"status": ["converged"] * 8 + ["iteration limit"] * 2, "iterations": [52] * 10}
    assert [met for *_, met in check.compared("net", here, worse)] == ["MISSED", "MISSED", "met", "met"]
    scores = here | {what: here[what] + 1.1 for what in ("clean", "perturbed")}
    assert [met for *_, met in check.compared("net", here, scores)] == ["met", "met", "MISSED", "MISSED"]
    # what is no more than chance: 4 % more iterations, 2 ± 1.3; 3 points, 3 ± 2
    chance = here | {"iterations": [50] * 8 + [60] * 2, "perturbed": here["perturbed"] + [3.0, 1.0, 5.0]}
    assert [met for *_, met in check.compared("net", here, chance)] == ["met"] * 4


def test_a_step_that_fails_is_said_and_the_others_go_on(check, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(check, "evaluation", broken)
    monkeypatch.setattr(check, "attack", lambda *_: [("G1", "0.95", "met")])
    monkeypatch.setattr(check, "tests", lambda *_: [("gpu tests", "7 passed", "met")])
    assert check.main(["--tiny", "--device", "cpu"]) == 1
    table = capsys.readouterr().out.rpartition("\n\n")[2]
    assert "evaluation       FAILED   RuntimeError: no kernel image" in table and "7 passed" in table


def test_without_a_device_the_check_says_so(check, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 1
    assert capsys.readouterr().err.startswith("no CUDA device here: nothing is checked")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_graphs_are_measured_too(program, capsys):
    assert program.main(["--batch", "2", "--iterations", "2", "--modes", "graphed"]) == 0
    assert capsys.readouterr().out.count("\n  graphed ") == 2
