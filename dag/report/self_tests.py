"""Sanity checks of the attacks of an experiment: the usual signs of an evaluation that overestimates robustness.

A network that withstands an attack is robust, or the attack is weak.  Most published defences that were re-evaluated
had been tested with weak attacks, and simple checks would have shown it (Carlini et al., 2019; Zimmermann et al.,
2022).  The checks need no network: they read scores, attack records and the results on planted examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from dag.report.claims import ABSENT, FAILS, FEWEST, HOLDS, OPEN
from dag.report.frames import RESOLVED

# Largest share of the clean score that may remain at the largest budget.
LEFT = 0.05
# Smallest share of the planted targets that has to be found.
FOUND = 0.95

CAPTION = f"With fewer than {FEWEST} images nothing is resolved."


def self_tests(
    budgets: pd.DataFrame, iterations: pd.DataFrame, sources: Sequence[Mapping], planted: Sequence[Mapping]
) -> pd.DataFrame:
    """Every test with its verdict.

    Parameters
    ----------
    budgets, iterations : DataFrame
        Frames of `dag.report.frames.robustness` along eps and along iterations, float pixels, concatenated, with a
        column `table`; a row may occur in several tables.  Empty if there are none.
    sources : sequence of dict
        From `dag.report.collect.records`: attacks with their settings and records.
    planted : sequence of dict
        From `dag.attack.planted.find_planted`, with `network`, `image_set` and `label` of the source.

    Returns
    -------
    DataFrame
        The columns of `dag.report.claims.claims`, one row per test, always the same rows.
    """
    budgets, iterations = (
        frame.drop_duplicates(["victim", "image_set", "perturbation", "chosen", "value"]) if len(frame) else frame
        for frame in (budgets, iterations)
    )
    rows = [
        _budget_kept(sources),
        _gradients(sources),
        _better_than_the_start(sources),
        _planted(planted),
        _falls_to_zero(budgets),
        _never_helps(budgets, "A larger budget never helps the network", "ε"),
        _never_helps(iterations, "More iterations never help the network", "number of iterations"),
    ]
    frame = pd.DataFrame(rows, columns=["claim", "paper", "measure", "value", "verdict"])
    images = [len(source["records"]) for source in sources]
    if images and min(images) < FEWEST:
        frame.loc[frame.verdict.isin([HOLDS, FAILS]) & (frame.index > 0), "verdict"] = OPEN
    missing = dict.fromkeys(image for source in sources for image in source["missing"])
    return frame.assign(missing=" ".join(missing))


def _budget_kept(sources: Sequence[Mapping]) -> tuple[str, ...]:
    """Largest stored |r| of every attack with an l-infinity budget."""
    bounded = [(source, _eps(source["settings"])) for source in sources if _eps(source["settings"])]
    largest = [max(record["largest"] for record in source["records"]) for source, _ in bounded]
    over = [
        f"{source['label']}: {most:.6g} of {eps:g}"
        for (source, eps), most in zip(bounded, largest, strict=True)
        if most > eps
    ]
    return (
        "No stored perturbation leaves its budget",
        "range of pixels",
        "Largest |r| over all images against ε, for every attack with an L∞ budget, in float32 as stored; exact.",
        "; ".join(over) or f"{len(bounded)} attacks, no value above its ε" * bool(bounded),
        (FAILS if over else HOLDS) if bounded else ABSENT,
    )


def _eps(settings: Mapping) -> float | None:
    """Radius of an l-infinity budget, the largest of several; None if there is no such budget."""
    each = settings.get("worst_of", [settings])
    return max(one["eps"] for one in each) if all(one.get("budget") == "linf" for one in each) else None


def _gradients(sources: Sequence[Mapping]) -> tuple[str, ...]:
    stuck = {
        source["label"]: sum(record["status"] == "no gradient" for record in source["records"]) for source in sources
    }
    found = [f"{label}: {count} images" for label, count in stuck.items() if count]
    return (
        "No gradient is zero",
        "masked gradients",
        "Images whose attack ended because the gradient was zero everywhere; holds if there are none.",
        "; ".join(found) or f"{sum(len(source['records']) for source in sources)} attacks on single images, none",
        FAILS if found else HOLDS,
    )


def _better_than_the_start(sources: Sequence[Mapping]) -> tuple[str, ...]:
    """Correct targets at a random point of the budget and at the end of the attack."""
    texts, gains, verdicts = [], [], []
    for source in sources:
        one = source["settings"].get("worst_of", [source["settings"]])[0]
        attacked = [record for record in source["records"] if record["targets"]]
        # the records of an attack in stages are those of the last stage, which does not start at a random point
        if one.get("start") != "uniform" or "stages" in one or len(attacked) < 2:
            continue
        shares = np.array([[record["start"], min(record["active"])] for record in attacked], float)
        shares /= np.array([record["targets"] for record in attacked], float)[:, None]
        gain = shares[:, 0] - shares[:, 1]
        verdicts.append(_verdict(gain.mean(), gain.std(ddof=1) / len(gain) ** 0.5))
        gains.append(gain.mean())
        texts.append(f"{source['label']}: {100 * shares[:, 0].mean():.0f} to {100 * shares[:, 1].mean():.0f} %")
    least = [texts[number] for number in np.argsort(gains, kind="stable")[:3]]
    return (
        "The gradient does more than a random perturbation of the same budget",
        "masked gradients",
        "Share of targets that are still recognised at the random starting point within the budget, and at the best "
        "iterate, mean over images; holds if the difference exceeds its error for every attack.",
        f"{len(texts)} attacks, those with the least difference {'; '.join(least)}" * bool(texts),
        _together(verdicts),
    )


def _planted(planted: Sequence[Mapping]) -> tuple[str, ...]:
    """Share of the planted targets that each attack changes, and the largest share per network and budget."""
    shares: dict[tuple, dict[str, list[float]]] = {}
    for row in planted:
        if row["targets"]:
            budget = tuple(row[key] for key in ("network", "image_set", "budget", "eps", "objectness"))
            shares.setdefault(budget, {}).setdefault(row["label"], []).append(1 - row["left"] / row["targets"])
    means = [{label: float(np.mean(found)) for label, found in of.items()} for of in shares.values()]
    best = [max(of.values()) for of in means]
    every = sorted(((share, label) for of in means for label, share in of.items()), key=lambda pair: pair[0])
    short = [pair for pair in every if pair[0] < FOUND]
    texts = [f"{len(every)} attacks, the best of each network and budget at least {100 * min(best, default=0):.0f} %"]
    if short:
        listed = ", ".join(f"{label} {100 * share:.0f} %" for share, label in short[:5])
        texts.append(f"below {100 * FOUND:.0f} % are {len(short)}: {listed}{', ...' if len(short) > 5 else ''}")
    return (
        "A planted adversarial example is found",
        "masked gradients, weak attacks",
        "Share of targets changed by the attack, where a readout of the network's scores is known to change at a "
        "random corner of the budget (first images of an image set); holds if, for every network and budget, one "
        f"attack changes {100 * FOUND:.0f} % of them. A network that withstands only weaker ones need not be robust.",
        "; ".join(texts) * bool(best),
        ABSENT if not best else FAILS if min(best) < FOUND else HOLDS,
    )


def _falls_to_zero(frame: pd.DataFrame) -> tuple[str, ...]:
    """The lowest score of every network at its largest eps."""
    texts, verdicts = [], []
    for _, mine in frame.groupby(["victim", "image_set"], sort=False) if len(frame) else ():
        # background, which foreground attacks leave alone, keeps mIoU above zero
        score = "companion" if mine.task.iloc[0] == "segmentation" else "score"
        clean = mine[mine.value == 0].iloc[0]
        lowest = mine[mine.value == mine.value.max()].sort_values(score, kind="stable").iloc[0]
        limit = LEFT * clean[score]
        verdicts.append(_verdict(limit - lowest[score], lowest[f"{score}_se"]))
        metric = lowest["companion_metric" if score == "companion" else "metric"]
        left = f"{lowest[score]:.1f} ± {lowest[f'{score}_se']:.1f} of {clean[score]:.1f}"
        texts.append(f"{lowest.column_label}: {metric} {left} at {lowest.condition}")
    return (
        "Scores fall to zero as the budget grows",
        "unbounded attack",
        f"Score under the strongest attack at the largest ε; holds if it is below {100 * LEFT:.0f} % of the clean one "
        "for every network. Otherwise try a larger ε or more iterations before calling a network robust.",
        "; ".join(texts),
        _together(verdicts),
    )


def _never_helps(frame: pd.DataFrame, claim: str, what: str) -> tuple[str, ...]:
    """Differences between neighbouring values along the setting."""
    risen, compared = [], 0
    for _, line in frame.groupby(["victim", "image_set", "table", "attack"], sort=False) if len(frame) else ():
        rows = list(line[line.value > 0].sort_values("value").itertuples())
        for before, after in pairwise(rows):
            compared += 1
            if after.score - before.score > RESOLVED * np.hypot(after.score_se, before.score_se):
                scores = f"{before.score:.1f} at {before.condition}, {after.score:.1f} at {after.condition}"
                risen.append(f"{after.column_label}: {scores}")
    return (
        claim,
        "convergence",
        f"Score at each {what} compared with the one before; does not hold if any rises by more than its error (the "
        "two taken as independent).",
        "; ".join(risen) or f"{compared} comparisons, no rise" * bool(compared),
        (FAILS if risen else HOLDS) if compared else ABSENT,
    )


def _verdict(value: float, se: float) -> str:
    """Whether a value is significantly above 0."""
    if value > RESOLVED * se:
        return HOLDS
    return FAILS if value < -RESOLVED * se else OPEN


def _together(verdicts: Sequence[str]) -> str:
    if not verdicts:
        return ABSENT
    return next((verdict for verdict in (FAILS, OPEN) if verdict in verdicts), HOLDS)
