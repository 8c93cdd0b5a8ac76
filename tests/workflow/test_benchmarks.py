"""The benchmark of the attack runs, times nothing if a result is wrong, and says if a measurement is worth nothing."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    path, threads, before = list(sys.path), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    spec = importlib.util.spec_from_file_location("benchmark_of_the_attack", ROOT / "benchmarks" / "attack.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks for its module there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
    sys.path[:] = path
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture
def tiny(benchmark, monkeypatch):
    """Settings that take seconds."""
    case = benchmark.Case(
        "dag.networks.mini.fcn:fcn", {"body": "alex", "labels": list(range(5)), "width": 8}, (48, 64), 2, 1, 1,
        (benchmark.Goal("P1", "plain", "F", 100.0), benchmark.Goal("P3", "peer", "built", 1e-9, False)),
    )  # fmt: skip
    monkeypatch.setattr(benchmark, "LIGHT", {"tiny": case})
    monkeypatch.setattr(benchmark, "HEAVY", {})
    monkeypatch.setattr(benchmark, "MEMORY_BATCHES", (2,))
    monkeypatch.setattr(benchmark, "QUEUE", 40)
    # a busy machine shall not fail the test; what is invalid is tested below
    monkeypatch.setattr(benchmark, "MOST_SPREAD", 1e9)
    monkeypatch.setattr(benchmark, "MOST_DIFFERENCE", 1e9)
    return case


def test_the_light_half_reports_every_goal(benchmark, tiny, capsys):
    assert benchmark.main(["--light"]) == 0
    printed = capsys.readouterr().out
    assert "peer: none given, skipped" in printed
    assert "P1  plain / F" in printed and "goal <= 100.0: met" in printed
    assert "P3  peer / built: skipped, no peer here" in printed
    assert "P7  saved  plain / F" in printed and "P8  executed passes / useful ones" in printed


def test_a_peer_is_measured(benchmark, tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "adv_lib" / "attacks" / "segmentation"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder / "dense_adversary.py").write_text(
        "def dag(model, inputs, labels, adv_threshold, max_iter, γ):\n"
        "    assert 0 <= inputs.min() and inputs.max() <= 1 and labels.shape == inputs[:, 0].shape\n"
        "    for _ in range(max_iter):\n"
        "        model(inputs)\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        peer = benchmark.load_peer(tmp_path)
        assert benchmark.run_case("tiny", tiny, peer)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "adv_lib"]:
            del sys.modules[name]
    assert "P3  peer / built" in (printed := capsys.readouterr().out) and "skipped" not in printed


def test_a_folder_without_the_peer_is_refused(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="adv-lib cannot be imported from there"):
        benchmark.load_peer(tmp_path)


def test_a_wrong_result_is_not_timed(benchmark, tiny, monkeypatch):
    right = benchmark.perturb.pixel_scores

    def wrong(network):
        scores = right(network)
        return lambda x, problems: [f + 1e-6 * f**2 for f in scores(x, problems)]

    monkeypatch.setattr(benchmark.perturb, "pixel_scores", wrong)
    monkeypatch.setattr(benchmark, "measure", None)
    with pytest.raises(SystemExit, match="tiny: the engine on the plain network differs from the plain loop"):
        benchmark.run_case("tiny", tiny, None)


def test_a_wrong_rewriting_is_not_timed(benchmark, tiny, monkeypatch):
    def wrong(network):
        network.score.weight *= 1 + 1e-6 * torch.rand_like(network.score.weight)
        return network

    monkeypatch.setattr(benchmark, "rewrite", wrong)
    monkeypatch.setattr(benchmark, "measure", None)
    with pytest.raises(SystemExit, match="tiny: the engine on the built network differs"):
        benchmark.run_case("tiny", tiny, None)


def test_active_rows_have_the_gradient_of_all_rows(benchmark, monkeypatch, capsys):
    sizes = {"rois": 12, "active": 3, "widths": (20, 16, 8)}
    benchmark.run_head(**sizes)
    assert "P6  active rows, backward / all rows, backward" in capsys.readouterr().out
    monkeypatch.setattr(benchmark.operators, "perceptron", lambda x, layers: layers[1](layers[0](x)))
    with pytest.raises(SystemExit, match="the gradient through active rows differs"):
        benchmark.run_head(**sizes)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([1.0, 1.1, 1.05], [1.02, 1.06, 1.08], ""),
        ([1.0, 1.3, 1.05], [1.05, 1.05, 1.05], "F varies by 29%"),
        ([1.0, 1.0, 1.0], [1.05, 1.05, 1.05], "F measured twice differs by 5%"),
    ],
)
def test_an_invalid_measurement_is_said_to_be_invalid(benchmark, first, second, reason, capsys):
    goals = (benchmark.Goal("P1", "plain", "F", 2.0),)
    times = {"F": first, "plain": [1.0, 1.0, 1.0], "F'": second}
    assert benchmark.reason_against(times) == reason
    assert benchmark.report(goals, times) is (not reason)
    printed = capsys.readouterr().out
    assert ("INVALID, measure again" in printed) is bool(reason)
    assert printed.rstrip().endswith("invalid" if reason else "met")


def test_a_missed_goal_is_said_to_be_missed(benchmark, capsys):
    times = {"F": [1.0, 1.0, 1.0], "plain": [1.2, 1.4, 1.3], "F'": [1.0, 1.0, 1.0]}
    assert benchmark.report((benchmark.Goal("P1", "plain", "F", 1.02),), times)
    assert "1.300 (1.200 .. 1.400), goal <= 1.02: MISSED" in capsys.readouterr().out


def test_iterations_are_timed_without_what_is_prepared_once(benchmark, monkeypatch):
    now = iter([0.0, 100.0, 103.0, 106.0])  # the calls of the network; the first iteration prepares
    monkeypatch.setattr(time, "process_time", lambda: next(now))

    def run(function):
        while True:
            function()

    assert benchmark.per_iteration(run, lambda: None, 2) == 3.0


def test_an_attack_that_ends_early_is_not_timed(benchmark):
    with pytest.raises(RuntimeError, match="ended after 1 of 4 passes"):
        benchmark.per_iteration(lambda function: function(), lambda: None, 2)


def test_what_autograd_keeps_is_counted_once(benchmark):
    x = torch.rand(1000, requires_grad=True)
    with benchmark.saved_storages() as storages:
        y = x.exp()  # keeps its result
        y.view(10, 100).sin()  # keeps the same again
    assert sum(storages.values()) == 4000


@pytest.fixture
def evaluation_benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("evaluation_benchmark", ROOT / "benchmarks" / "evaluation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_of_the_evaluation_runs(evaluation_benchmark, tmp_path, capsys):
    size = (30, 40)
    evaluation_benchmark.memory(tmp_path, size, images=6, first=2, perturbations=18)
    evaluation_benchmark.evaluation(tmp_path, size, images=2, perturbations=2, victims=2)
    assert evaluation_benchmark.scores(images=20) > 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["E5", "E1", "E3", "E4", "20"]
    assert lines[1].startswith("E1  16 predictions: before ")


def test_the_benchmark_of_the_evaluation_measures_nothing_wrong(evaluation_benchmark, tmp_path, monkeypatch):
    outputs = evaluation_benchmark.predict.outputs
    monkeypatch.setattr(evaluation_benchmark.predict, "outputs", lambda *given: outputs(*given) + 1)
    with pytest.raises(SystemExit, match="the label map of image 000000 has changed; nothing is measured"):
        evaluation_benchmark.evaluation(tmp_path, (30, 40), images=2, perturbations=2, victims=1)
