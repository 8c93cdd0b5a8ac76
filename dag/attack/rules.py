"""Rules by which implementations of the attack differ, their presets, and how an attack can end.

The paper's text and the authors' code differ; `Rules` has a field for every difference, and `PRESETS` the two
named combinations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CONVERGED = "converged"


ITERATION_LIMIT = "iteration limit"


NO_TARGETS = "no targets"


NO_GRADIENT = "no gradient"


STATUSES = (CONVERGED, ITERATION_LIMIT, NO_TARGETS, NO_GRADIENT)


@dataclass(frozen=True)
class Rules:
    """Differences between implementations of the attack.

    Attributes
    ----------
    labels : str
        Adversarial labels: "derangement" of all classes, or "absent" foreground classes.
    active : str
        Targets that are pushed: "correct" (prediction is the true label, the paper's T_m),
        "unmoved" (neither the adversarial label nor background; all targets in the first step;
        the attack ends when no prediction is the true label), or "unreached" (prediction is not
        the adversarial label).
    suppress : str
        Score that is pushed down: of the true "label" or of the current "prediction".
    background : bool
        Segmentation: background pixels are targets too, to be kept background.
    strength : tuple of float or None
        The authors' 0.8 rule, (IoU, score), with them (0.35, 0.8): of the targets that reached their
        adversarial label, those that survive suppression at this IoU with a probability below this
        score count as not yet moved.
    stop : float
        The attack ends when at most this share of the foreground targets is left.
    """

    labels: str = "derangement"
    active: str = "correct"
    suppress: str = "label"
    background: bool = False
    strength: tuple[float, float] | None = None
    stop: float = 0.0


PRESETS = {
    ("algorithm-1", "segmentation"): Rules(),
    ("algorithm-1", "detection"): Rules(),
    ("authors", "segmentation"): Rules(
        labels="absent", active="unreached", suppress="prediction", background=True, stop=0.01
    ),
    ("authors", "detection"): Rules(labels="absent", active="unmoved", strength=(0.35, 0.8)),
}


def rules_of(settings: dict, task: str) -> Rules:
    """Rules of an attack's settings: the preset named by `rules`, with single points replaced by `options`.

    Objectives other than "dag" have no rules: they need the true label only.
    """
    if settings.get("objective", "dag") != "dag":
        return Rules()
    preset = PRESETS[settings["rules"], task]
    options = dict(settings.get("options", {}))
    if options.get("strength") is not None:
        options["strength"] = tuple(options["strength"])
    return replace(preset, **options)
