"""A host that reads one iteration late: the same attacks, and nothing in an iteration that it would wait for."""

import pytest
import test_engine
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dag.attack import engine, perturb
from dag.attack.engine import Attack, AttackError, Problem, dense_adversaries
from dag.attack.rules import PRESETS, STATUSES, Rules
from dag.networks.building import build
from dag.networks.interface import Segmenter

torch.set_num_threads(1)


def scores(x: Tensor, problems: list[Problem]) -> list[Tensor]:
    """Each problem brings its own function of its image, in `where`."""
    return [problem.where(one.flatten()) for one, problem in zip(x, problems, strict=True)]


def ramp(height: float):
    """Two targets with the margins x_0 + height and x_1 + 2 height: they flip one after the other."""
    return lambda x: torch.stack([torch.stack([x[0] + height, x[0] * 0]), torch.stack([x[1] + 2 * height, x[1] * 0])])


def flat(x: Tensor) -> Tensor:
    """Margins that cannot fall below 7.75."""
    return torch.stack([9 + x[:2].clamp(min=-1.25), torch.zeros(2)], 1)


def broken_scores(x: Tensor) -> Tensor:
    """Not finite after two steps."""
    return torch.stack([torch.where(x[:2] < -0.9, torch.nan, 9 + x[:2]), torch.zeros(2)], 1)


def broken_gradient(x: Tensor) -> Tensor:
    """The derivative of a square root at 0, after two steps."""
    return torch.stack([9 + (x[:2] + 1).sqrt(), torch.zeros(2)], 1)


def problem(name: str, function, labels=(0, 0), start: Attack | None = None, size: int = 2) -> Problem:
    labels = torch.tensor(labels)
    adversarial = torch.where(labels < 0, -1, 1 - labels)
    return Problem(torch.zeros(3, 1, size), labels, adversarial, where=function, name=name, start=start)


MIXED = {
    "converged": [ramp(height) for height in (0.3, 1.2, 0.1, 2.2)],
    "not recognised": [ramp(-1.0)],
    "iteration limit": [ramp(50.0), ramp(9.0)],
    "no gradient": [flat, lambda x: flat(x) + 0 * x[0]],
}


def mixed() -> list[Problem]:
    """Every way to end but by an error, in an order that mixes them."""
    found = [problem(f"{kind} {n}", f) for kind, functions in MIXED.items() for n, f in enumerate(functions)]
    found.append(problem("no targets", None, labels=(-1, -1)))
    ((_, half),) = dense_adversaries([problem("half", ramp(1.2))], scores, rules=Rules(), iterations=2)
    assert half.status == "iteration limit"
    found.append(problem("gone on with", ramp(1.2), start=half))
    return found[::2] + found[1::2]


def results(problems, function=scores, **options) -> dict[str, Attack]:
    options = {"rules": Rules(), "iterations": 8} | options
    return {problem.name: found for problem, found in dense_adversaries(problems, function, **options)}


def same(found: dict[str, Attack], expected: dict[str, Attack]) -> bool:
    return found.keys() == expected.keys() and all(
        (found[name].status, found[name].active) == (one.status, one.active)
        and torch.equal(found[name].perturbation, one.perturbation)
        for name, one in expected.items()
    )


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("stop", [0.0, 0.5])
def test_every_way_to_end_is_the_same(batch, stop):
    passes = {True: 0, False: 0}
    found = {}
    for late in passes:

        def counted(x, todo, late=late):
            passes[late] += len(todo)
            return scores(x, todo)

        found[late] = results(mixed(), counted, late=late, batch=batch, rules=Rules(stop=stop))
    assert {one.status for one in found[True].values()} == set(STATUSES)
    assert same(found[True], found[False])
    attacked = sum(one.status != engine.NO_TARGETS for one in found[True].values())
    assert passes[True] == passes[False] + attacked  # an image is along once more


@pytest.mark.parametrize("late", [False, True])
def test_the_share_that_may_be_left_is_the_same_number_for_the_host_and_for_the_network(late):
    # 0.29 * 100 is less than 29, and equal to it in single precision: 29 targets are too many
    table = torch.tensor([[9.0, 0]] * 29 + [[0.0, 9]] * 71)
    one = problem("many", lambda x: table + x[0] * torch.tensor([1.0, 0]), labels=[0] * 100)
    (found,) = results([one], late=late, rules=Rules(stop=0.29), iterations=1).values()
    assert (found.status, found.active) == ("iteration limit", [29, 29])
    assert found.perturbation.flatten().tolist() == [-0.5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_rule_of_strength_is_the_same(batch):
    boxes = torch.tensor([[0, 0, 9, 9], [100, 0, 109, 9]]).float()
    options = {"rules": PRESETS["authors", "detection"], "probabilities": lambda f: f.softmax(1), "batch": batch}
    todo = [
        Problem(one.image, one.labels, one.adversarial, boxes, one.where, one.name)
        for one in (problem(str(height), ramp(height)) for height in (0.1, 0.4, 1.1, 2.6, 50))
    ]
    immediate, late = (results(todo, late=late, **options) for late in (False, True))
    assert {one.status for one in late.values()} == {"converged", "iteration limit"}
    assert same(late, immediate)
    # so the rule had an effect
    assert not same(late, results(todo, **options | {"rules": Rules("absent", "unmoved")}))


@pytest.mark.parametrize("task", test_engine.TASKS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_networks_are_attacked_the_same(task, batch):
    made, settings = test_engine.network(task), test_engine.SETTINGS[task] | {"iterations": 6}
    todo = test_engine.problems(made, 5, settings)
    function = perturb.proposal_scores(made) if task == "detection" else perturb.pixel_scores(made)
    immediate, late = (results(todo, function, iterations=6, late=late, batch=batch) for late in (False, True))
    for name, expected in immediate.items():
        # others share the pass: only the rounding may differ
        assert (late[name].status, late[name].active) == (expected.status, expected.active)
        torch.testing.assert_close(late[name].perturbation, expected.perturbation, rtol=1e-9, atol=1e-12)
    assert batch > 1 or same(late, immediate)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("function", "message"),
    [(broken_scores, "^bad: the network's scores are not"), (broken_gradient, "^bad: the gradient of the network's")],
)
def test_numbers_that_are_not_finite_are_named_and_come_after_what_ended_before(late, function, message):
    # "slow" ends with the pass in which "bad" turns bad, "quick" one before
    todo = [problem("quick", ramp(-1.0)), problem("bad", function), problem("slow", ramp(0.7))]
    found = []
    with pytest.raises(AttackError, match=message):
        found.extend(
            p.name for p, _ in dense_adversaries(todo, scores, rules=Rules(), iterations=9, batch=3, late=late)
        )
    assert found == ["quick"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("fits", [1, 3])
def test_memory_that_becomes_too_small_changes_nothing(late, fits, capsys):
    calls = []

    def limited(x, todo):
        calls.append(len(todo))
        if len(calls) > 2 and len(todo) > fits:  # some reports are under way
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores(x, todo)

    assert same(results(mixed(), limited, late=late, batch=6), results(mixed(), batch=6))
    assert calls[:2] == [6, 6] and f"going on with {fits}" in capsys.readouterr().out


@pytest.mark.gpu
def test_late_and_immediate_are_the_same_on_a_gpu():
    made = test_engine.network("segmentation").cuda()
    todo = test_engine.problems(made, 5, test_engine.SETTINGS["segmentation"], "cuda")
    function = perturb.pixel_scores(made)
    found = [results(todo, function, iterations=6, late=late, batch=3) for late in (False, True)]
    for name, one in found[0].items():
        assert (found[1][name].status, found[1][name].active) == (one.status, one.active)
        torch.testing.assert_close(found[1][name].perturbation, one.perturbation, rtol=1e-9, atol=1e-12)


@pytest.mark.gpu
def test_a_gpu_whose_memory_is_too_small_changes_nothing(capsys):
    def wide(x, todo):
        """Scores whose computation needs some 30 MiB several times for every image."""
        planes = torch.cat([x * (1 + n / 40) for n in range(40)], 1).sin().mean(1)
        return [torch.stack([9 + plane.flatten(), torch.zeros_like(plane.flatten())], 1) for plane in planes]

    images = torch.rand(8, 3, 256, 256, generator=torch.Generator().manual_seed(0)).cuda()
    labels = torch.zeros(256 * 256, dtype=torch.long, device="cuda")
    todo = [Problem(image, labels, 1 - labels, name=str(number)) for number, image in enumerate(images)]
    needed, found = {}, {}
    for batch in (1, 8):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        found[batch] = results(todo, wide, iterations=4, late=True, batch=batch)
        needed[batch] = torch.cuda.max_memory_reserved()
    assert needed[8] > 3 * needed[1] and "going on" not in capsys.readouterr().out
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((needed[1] + needed[8]) / 2 / total)
    try:
        assert same(results(todo, wide, iterations=4, late=True, batch=8), found[8])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with 8 images of 256 x 256: going on with 4" in capsys.readouterr().out


def test_an_interruption_finds_the_attack_as_it_was():
    """Nothing of an iteration is changed before both of its passes have succeeded."""

    def interrupted(x, todo):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results(mixed(), interrupted, late=True, batch=3)


# What a host would wait for.

aten = torch.ops.aten
# Operations whose output's size or value the host has to know, and numbers that it makes and would have to send.
WAITS = {
    getattr(aten, name).default
    for name in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "lift_fresh", "_unique2")
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Waits(TorchDispatchMode):
    """Counts the operations that a GPU would make the host wait for."""

    def __init__(self):
        super().__init__()
        self.watching, self.found = False, []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        masks = function in INDEXING and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if self.watching and (function in WAITS or masks):
            self.found.append(function.name())
        return function(*arguments, **(keywords or {}))


def waits(made, iterations: int = 3) -> list[str]:
    """Of the iterations after the first, which prepares what is needed once."""
    image = 255 * torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    segments = isinstance(made, Segmenter)
    with torch.no_grad():
        if segments:
            where, boxes = torch.arange(96 * 128), None
            labels = made(image[None])[0].flatten(1).argmax(0)
        else:
            features = made.features(image[None])
            where = made.propose(features, nms=0.9, limit=30)[0]
            labels, boxes = made.scores(features, [where]).argmax(1), where.boxes
    one = Problem(image, labels, (labels + 1) % len(made.labels), boxes, where)
    function, mode = (perturb.pixel_scores if segments else perturb.proposal_scores)(made), Waits()
    passes = 0

    def watched(x, todo):
        nonlocal passes
        passes += 1
        mode.watching = passes > 1
        return function(x, todo)

    options = {"rules": Rules(active="unreached", stop=-1), "iterations": iterations, "late": True}
    with mode:
        for _ in dense_adversaries([one], watched, **options):
            mode.watching = False
    assert passes == iterations + 2  # the last one is for nothing
    return mode.found


LABELS = list(range(7))
NARROW = dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"), 4)
RCNN = {"widths": NARROW | {"rpn": 4}, "short": 120, "long": 200}
RFCN = {"body": "resnet50", "widths": {"conv1": 2, "rpn": 4, "conv_new_1": 4}, "short": 120, "long": 200}
FREE = {
    "fcn": ("dag.networks.mini.fcn:fcn", {"body": "vgg", "labels": LABELS, "skip": True}),
    "deeplab": ("dag.networks.mini.deeplab:deeplab", {"body": "rn50", "labels": LABELS}),
    "deeplab-vgg16": ("dag.networks.caffe.deeplab:deeplab_vgg16", {"widths": NARROW, "frame": 129}),
    "deeplab-resnet101": ("dag.networks.caffe.deeplab:deeplab_resnet101", {"width": 2, "frame": 129}),
    "lraspp": ("dag.networks.torchvision_models:segmenter", {"name": "lraspp_mobilenet_v3_large", "short_side": 64}),
    "rfcn": ("dag.networks.mini.rfcn:rfcn", {"body": "rn50", "labels": LABELS}),
    "rfcn-resnet": ("dag.networks.caffe.rfcn:rfcn", RFCN),
}


@pytest.mark.parametrize("name", FREE)
def test_nothing_in_an_iteration_makes_the_host_wait(name):
    torch.manual_seed(0)
    assert waits(build(*FREE[name])) == []


@pytest.mark.parametrize("arguments", [{"body": "zf"}, {"body": "vgg16", "convention": "matlab"}])
def test_faster_rcnn_waits_for_the_number_of_rows_that_are_still_attacked(arguments):
    torch.manual_seed(0)
    made = build("dag.networks.caffe.faster_rcnn:faster_rcnn", RCNN | arguments)
    assert waits(made) == ["aten::nonzero"] * 2 * 4  # for fc7 and fc6, and for the pooling


@pytest.mark.parametrize("architecture", ["fcn8s_vgg16", "fcn_alexnet"])
def test_weights_of_a_border_are_compared_by_value_on_a_cpu_alone(architecture):
    torch.manual_seed(0)
    made = build(f"dag.networks.caffe.fcn:{architecture}", {"widths": NARROW})
    assert set(waits(made)) == {"aten::equal"}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fcn8s", "fcn", "rfcn"])
def test_a_gpu_is_never_waited_for_in_an_iteration(kind):
    torch.manual_seed(0)
    architectures = FREE | {"fcn8s": ("dag.networks.caffe.fcn:fcn8s_vgg16", {"widths": NARROW})}
    made = build(*architectures[kind]).cuda()
    image = 255 * torch.rand(3, 96, 128).cuda()
    if isinstance(made, Segmenter):
        where, function = torch.arange(96 * 128).cuda(), perturb.pixel_scores(made)
        labels = made(image[None])[0].flatten(1).argmax(0)
    else:
        where, function = made.propose(made.features(image[None]), nms=0.9, limit=30)[0], perturb.proposal_scores(made)
        labels = made.scores(made.features(image[None]), [where]).argmax(1)
    one, passes = Problem(image, labels, (labels + 1) % len(made.labels), where=where), []

    def strict(x, todo):
        passes.append(len(todo))
        if len(passes) == 2:
            torch.cuda.set_sync_debug_mode("error")
        return function(x, todo)

    try:
        rules = Rules(active="unreached", stop=-1)
        for _ in dense_adversaries([one], strict, rules=rules, iterations=5, late=True):
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(passes) == 7
