"""Claims of the paper, and whether they hold in this experiment.

Every claim is one function of the scores or of the attack's records, with a rule for its verdict that is stated
beside it.  A claim holds, or does not hold, if the whole 95 % interval of the deciding quantity agrees; otherwise, and
with fewer than `FEWEST` images, it is not resolved.  Intervals are 1.96 standard errors to either side of a mean, and
those of Clopper and Pearson for a share of images.  The standard error of a mean of cells is the root mean square of
their errors, an upper bound, which is reached if all move together (cells share their images); two means are taken as
independent.  It says nothing about other networks or training seeds.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence

import pandas as pd
from scipy.stats import beta

from dag.report.frames import RESOLVED
from dag.report.wording import listed
from dag.workflow.names import parse

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "not resolved", "cannot be asked here"

# With fewer images nothing is decided: a bootstrap over so few does not estimate their spread.
FEWEST = 10

# The attack of a task as configured, and the one that the paper's text describes.
PRINTED = "as printed"
ATTACKS = {"": "default attack", PRINTED: "Algorithm 1 as printed"}

_CAPTION = (
    "The verdicts are about the networks and images of this experiment. Drops are in percentage points; ± is the "
    f"standard error of a mean, resolved is what exceeds {RESOLVED} of them (bootstrap over images, cells of a mean "
    f"taken as if they moved together). With fewer than {FEWEST} images nothing is resolved. Where no attack is named, "
    "it is the default one."
)
_FAMILY = "One architecture: one `family` of the configuration, in which another pretrained start is another family."
_PRINTED = "A task without that variant shows its default attack."

_CELL = ["base", "victim", "image_set"]


def claims(
    cells: pd.DataFrame,
    statuses: pd.DataFrame,
    families: Mapping[str, str],
    architectures: Mapping[str, str],
    printed: Collection[str] = (),
) -> pd.DataFrame:
    """Every claim with its verdict.

    Parameters
    ----------
    cells : DataFrame
        Frames of `dag.report.frames.transfer` and `white_box`, concatenated; a cell may occur in several.
    statuses : DataFrame
        From `dag.report.attack_frames.statuses`, with every source of the cells.
    families : mapping of str to str
        Family of every network: networks of one architecture and one pretrained start.
    architectures : mapping of str to str
        Architecture of every network, whatever its weights.
    printed : collection of str
        Variants that differ from the default attack by following Algorithm 1 as it is printed.

    Returns
    -------
    DataFrame
        One row per claim, always the same rows: claim, paper (section), measure (what was computed and what
        decides), value, verdict: "holds", "does not hold", "not resolved", or "cannot be asked here", and missing: ids
        of the images that the cells or the statuses do without, separated by blanks, the same in every row.

    Raises
    ------
    ValueError
        If a source of the cells is not in `statuses`, or a network has no family.
    """
    missing = dict.fromkeys(" ".join([*cells.missing.unique(), *statuses.missing.unique()]).split())
    statuses = statuses.assign(attack=[_attack([source], printed) for source in statuses.source])
    cells = _described(cells, dict(zip(statuses.source, statuses.task, strict=True)), families, printed)
    shown = cells[cells.pixels == "float"]
    default = shown[shown.attack == ""]
    rows = [
        *(_own_perturbation(shown, attack) for attack in ATTACKS),
        _permuted(default),
        _architectures(default),
        _tasks(default),
        _starts(default, architectures),
        _summands(default),
        _sum_of_drops(default),
        *(_iterations(statuses, attack) for attack in ATTACKS),
        *(_converged(statuses, attack) for attack in ATTACKS),
        *(_perceptibility(statuses, attack) for attack in ATTACKS),
        *(_rounded(cells, attack) for attack in ATTACKS),
    ]
    frame = pd.DataFrame(rows, columns=["claim", "paper", "measure", "value", "verdict"])
    if cells.images.min() < FEWEST:
        frame.loc[frame.verdict != ABSENT, "verdict"] = OPEN
    return frame.assign(missing=" ".join(missing))


def no_cells() -> pd.DataFrame:
    """The cells of an experiment without tables of transfer: no claim about scores can be asked there."""
    texts = ("perturbation", "group", "victim", "task", "image_set", "missing", "metric", "pixels")
    numbers = ("images", "score", "score_se", "drop", "drop_se")
    kinds = dict.fromkeys(texts, object) | dict.fromkeys(numbers, float) | {"white_box": bool}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def to_markdown(
    frame: pd.DataFrame, title: str = "What of the paper's claims holds in this experiment", caption: str = _CAPTION
) -> str:
    """The claims, or other rows with verdicts, as a Markdown list whose source reads well too."""
    counts = frame.verdict.value_counts()
    summary = ", ".join(f"{verdict}: {counts.get(verdict, 0)}" for verdict in (HOLDS, FAILS, OPEN, ABSENT))
    items = []
    for row in frame.itertuples():
        place = f"section {row.paper}" if row.paper[0].isdigit() else row.paper
        lines = [_wrapped(f"- **{row.verdict}**: {row.claim} ({place}).", "  ")]
        lines += [_wrapped(f"  - {text}", "    ") for text in (row.value, row.measure) if text]
        items.append("\n".join(lines))
    ids = frame.missing[0].split()
    caption = f"{caption} Images that were given up are missing: {listed(ids)}." if ids else caption
    return "\n\n".join([f"## {title}", f"{summary}.", *items, _wrapped(caption)]) + "\n"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 110, subsequent_indent=indent)


def _described(
    cells: pd.DataFrame, tasks: Mapping[str, str], families: Mapping[str, str], printed: Collection[str]
) -> pd.DataFrame:
    """The cells of the paper's perturbations, each once, with what its perturbation is made of.

    Scaled perturbations and controls other than the permuted one are not the paper's.
    """
    recipes = cells.perturbation.map(parse)
    paper = recipes.map(lambda recipe: bool(recipe.sources) and not recipe.scale and recipe.control in ("", "permuted"))
    paper = paper.astype(bool)  # without cells it is none
    cells = cells[paper].drop_duplicates(["perturbation", "victim", "image_set", "pixels"])
    sources = cells.perturbation.map(lambda name: list(parse(name).sources))
    base = sources.map("+".join)
    networks = sources.map(lambda names: [name.partition("@")[0] for name in names])
    for name in sorted(set(sources.explode())):
        if name not in tasks:
            raise ValueError(f"source {name!r} has scores but no image records; give the shards of all sources")
    for name in sorted({*networks.explode(), *cells.victim}):
        if name not in families:
            raise ValueError(f"network {name!r} has scores but no family; give the families of all networks")
    return cells.assign(
        base=base,
        sources=sources,
        networks=networks,
        attack=sources.map(lambda names: _attack(names, printed)),
        same_task=[tasks[names[0]] == task for names, task in zip(sources, cells.task, strict=True)],
        same_family=[
            families[victim] in {families[name] for name in names}
            for names, victim in zip(networks, cells.victim, strict=True)
        ],
        clean=cells.score + cells["drop"],
    )


def _mean(drops: pd.Series, errors: pd.Series) -> tuple[float, float]:
    """Mean of drops and its standard error if all cells moved together."""
    return drops.mean(), math.sqrt((errors**2).mean())


def _resolved(difference: float, se: float) -> bool:
    return abs(difference) > RESOLVED * se


def _below(values: pd.Series, errors: pd.Series, limit: float) -> str:
    """Verdict on a claim that all values are below a limit."""
    if (values - RESOLVED * errors > limit).any():
        return FAILS
    return HOLDS if (values + RESOLVED * errors < limit).all() else OPEN


def _sign(difference: float, se: float) -> str:
    """Verdict on a claim that a difference is positive."""
    if not _resolved(difference, se):
        return OPEN
    return HOLDS if difference > 0 else FAILS


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


def _own_perturbation(cells: pd.DataFrame, attack: str) -> tuple[str, ...]:
    own = cells[(cells.group == "single") & cells.white_box & (cells.attack == attack) & (cells.clean > 0)]
    left = own.score / own.clean
    value, verdict = "", ABSENT
    if len(own):
        value = (
            f"{left.mean():.2f} of the clean score is left ({left.min():.2f} to {left.max():.2f}), {_cells(len(own))}"
        )
        verdict = _below(left, own.score_se / own.clean, 0.5)
    return (
        f"A network is misled by its own perturbation: {ATTACKS[attack]}",
        "3.4",
        "Mean share of the clean score that is left under the network's own perturbation; holds if every share is "
        "below a half.",
        value,
        verdict,
    )


def _permuted(cells: pd.DataFrame) -> tuple[str, ...]:
    both = cells[cells.group == "permuted"].merge(
        cells[cells.group != "permuted"], on=_CELL, suffixes=("", "_plain"), validate="many_to_one"
    )
    value, verdict = "", ABSENT
    if len(both):
        permuted, permuted_se = _mean(both["drop"], both.drop_se)
        plain, se = _mean(both.drop_plain, both.drop_se_plain)
        value = f"mean drop {permuted:z.1f} permuted, {plain:.1f} ± {se:.1f} unpermuted, {_cells(len(both))}"
        verdict = OPEN
        if plain > 0 and _resolved(plain, se):
            verdict = _below(pd.Series([abs(permuted)]), pd.Series([permuted_se]), plain / 10)
    return (
        "A permuted perturbation has next to no effect",
        "3.4, 4.4",
        "Mean drop under permuted perturbations against that under the same perturbations unpermuted; holds if its "
        "size is below a tenth, not resolved if the unpermuted ones have no resolved drop.",
        value,
        verdict,
    )


def _compared(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> tuple[str, str]:
    """Value and verdict of a claim that the drop is larger in the first cells than in the second."""
    if first.empty or second.empty:
        return "", ABSENT
    means = [_mean(cells["drop"], cells.drop_se) for cells in (first, second)]
    value = ", ".join(
        f"{name} {mean:z.1f} ± {se:.1f} ({_cells(len(cells))})"
        for name, (mean, se), cells in zip(names, means, (first, second), strict=True)
    )
    return f"mean drop {value}", _sign(means[0][0] - means[1][0], math.hypot(means[0][1], means[1][1]))


def _architectures(cells: pd.DataFrame) -> tuple[str, ...]:
    other = cells[(cells.group == "single") & ~cells.white_box & cells.same_task]
    return (
        "Transfer is stronger within an architecture than across architectures",
        "4.1, 4.2",
        "Mean drop of victims under single sources of the same task, source and victim different networks; decided by "
        f"the difference if it is resolved. {_FAMILY}",
        *_compared(other[other.same_family], other[~other.same_family], ("same architecture", "another")),
    )


def _tasks(cells: pd.DataFrame) -> tuple[str, ...]:
    other = cells[(cells.group == "single") & ~cells.white_box]
    return (
        "Transfer across tasks within an architecture is stronger than within the task across architectures",
        "4.3",
        "Mean drop under single sources of the other task and the same architecture, against that under single "
        f"sources of the same task and another architecture; decided by the difference if it is resolved. {_FAMILY}",
        *_compared(
            other[~other.same_task & other.same_family],
            other[other.same_task & ~other.same_family],
            ("other task, same architecture", "same task, other architecture"),
        ),
    )


def _starts(cells: pd.DataFrame, architectures: Mapping[str, str]) -> tuple[str, ...]:
    other = cells[(cells.group == "single") & ~cells.white_box & cells.same_task]
    alike = [
        architectures[names[0]] == architectures[victim]
        for names, victim in zip(other.networks, other.victim, strict=True)
    ]
    other = other[pd.Series(alike, other.index, dtype=bool)]
    return (
        "Within one architecture, transfer is stronger between networks from one pretrained start than from two",
        "our question, the paper's networks share their start",
        "Mean drop of victims of the source's own architecture, whose weights began where the source's did, against "
        "those that were trained from an independent start; decided by the difference if it is resolved.",
        *_compared(other[other.same_family], other[~other.same_family], ("same start", "independent start")),
    )


def _with_summands(cells: pd.DataFrame, sums: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of a sum and summand whose own cell is known, the latter's columns marked `_alone`."""
    singles = cells[cells.group == "single"].rename(columns={"base": "summand"})
    parts = sums.assign(summand=sums.sources).explode("summand")
    return parts.merge(singles, on=["summand", *_CELL[1:]], suffixes=("", "_alone"), validate="many_to_one")


def _summands(cells: pd.DataFrame) -> tuple[str, ...]:
    both = _with_summands(cells, cells[(cells.group == "sum") & cells.white_box])
    both = both[both.white_box_alone & (both.drop_alone > 0)]
    value, verdict = "", ABSENT
    if len(both):
        share = both["drop"] / both.drop_alone
        kept = int((share >= 0.8).sum())
        value = f"{kept} of {_cells(len(both))}, smallest ratio {share.min():.2f}"
        short = 0.8 * both.drop_alone - both["drop"]
        verdict = HOLDS if kept == len(both) else OPEN
        if (short > RESOLVED * (both.drop_se**2 + (0.8 * both.drop_se_alone) ** 2) ** 0.5).any():
            verdict = FAILS
    return (
        "A sum of perturbations misleads the networks of all its summands",
        "4.4",
        "Cells of a sum and the network of one of its summands in which the drop is at least 0.8 of that under the "
        "summand alone; holds if all are, does not if one is below by more than chance.",
        value,
        verdict,
    )


def _sum_of_drops(cells: pd.DataFrame) -> tuple[str, ...]:
    both = _with_summands(cells, cells[(cells.group == "sum") & ~cells.same_family])
    sums = both.groupby(["perturbation", *_CELL[1:]]).agg(
        summands=("sources", lambda names: len(names.iloc[0])),
        found=("summand", "count"),
        together=("drop", "first"),
        together_se=("drop_se", "first"),
        apart=("drop_alone", "sum"),
        # The drops of the summands may move together.
        apart_se=("drop_se_alone", "sum"),
    )
    sums = sums[sums.found == sums.summands]
    value, verdict = "", ABSENT
    if len(sums):
        together, together_se = _mean(sums.together, sums.together_se)
        apart, apart_se = _mean(sums.apart, sums.apart_se)
        value = (
            f"mean drop {together:z.1f} ± {together_se:.1f} under the sum, "
            f"{apart:z.1f} ± {apart_se:.1f} summed over the summands, {_cells(len(sums))}"
        )
        signs = {
            _sign(together - apart / 2, math.hypot(together_se, apart_se / 2)),
            _sign(2 * apart - together, math.hypot(2 * apart_se, together_se)),
        }
        verdict = FAILS if FAILS in signs else OPEN if OPEN in signs else HOLDS
    return (
        "On other networks the drop under a sum is about the sum of the drops",
        "4.4",
        "Mean drop under a sum of victims whose architecture no summand has, over the mean sum of the drops under its "
        "summands alone; holds if the ratio is between 0.5 and 2.",
        value,
        verdict,
    )


def _attack(sources: Sequence[str], printed: Collection[str]) -> str:
    """The attack that made the perturbations of sources: a key of `ATTACKS`, or else names of variants."""
    variants = {source.partition("@")[2] for source in sources}
    return "+".join(sorted(PRINTED if variant in printed else variant for variant in variants))


def _by_task(statuses: pd.DataFrame, attack: str) -> dict[str, pd.DataFrame]:
    """Sources of each task with images that have targets, by an attack; by its default where a task lacks it."""
    found = {}
    for task in ("segmentation", "detection"):
        rows = statuses[(statuses.task == task) & (statuses.images > statuses.no_targets)]
        named = rows[rows.attack == attack]
        found[task] = named if len(named) else rows[rows.attack == ""]
    return found


def _asked(statuses: pd.DataFrame, attack: str) -> bool:
    """Whether some source follows an attack."""
    return bool((statuses.attack == attack).any())


def _iterations(statuses: pd.DataFrame, attack: str) -> tuple[str, ...]:
    means = {task: rows.iterations_mean for task, rows in _by_task(statuses, attack).items()}
    value, verdict = "", ABSENT
    if _asked(statuses, attack) and all(len(values) for values in means.values()):
        value = ", ".join(
            f"{task} {values.mean():.1f} ({values.min():.1f} to {values.max():.1f}, {len(values)} sources)"
            for task, values in means.items()
        )
        verdict = OPEN
        if all(len(values) > 1 for values in means.values()):
            se = math.hypot(*(values.sem() for values in means.values()))
            verdict = _sign(means["detection"].mean() - means["segmentation"].mean(), se)
    return (
        f"Detection needs more iterations than segmentation: {ATTACKS[attack]}",
        "3.5.2",
        f"Mean number of iterations over the sources of a task. {_PRINTED} Decided by the difference if it is larger "
        f"than {RESOLVED} standard errors, here from the spread over the sources.",
        value,
        verdict,
    )


def _converged(statuses: pd.DataFrame, attack: str) -> tuple[str, ...]:
    rows = statuses[statuses.attack == attack]
    rows = rows.assign(attacked=rows.images - rows.no_targets, failed=rows.iteration_limit + rows.no_gradient)
    sums = rows.groupby("task", sort=False)[["failed", "attacked"]].sum()
    sums = sums[sums.attacked > 0]
    value, verdict = "", ABSENT
    if len(sums):
        value = ", ".join(f"{task} {row.failed} of {row.attacked} images" for task, row in sums.iterrows())
        verdict = _share_below(sums, 0.01)
    return (
        f"Fewer than 1 % of the images fail to converge: {ATTACKS[attack]}",
        "3.5.2",
        "Images that have targets and end without convergence, over all sources of a task; holds if the whole interval "
        "of their share is below 1 % in every task, does not if it is above in one.",
        value,
        verdict,
    )


def _share_below(sums: pd.DataFrame, limit: float) -> str:
    """Verdict on a claim that a share of images, `failed` of `attacked`, is below a limit in every row."""
    low = beta.ppf(0.025, sums.failed, sums.attacked - sums.failed + 1)
    high = beta.ppf(0.975, sums.failed + 1, sums.attacked - sums.failed)
    # the share is 0, or 1, at the ends, where the distribution is not defined
    if (low[sums.failed > 0] > limit).any():
        return FAILS
    return HOLDS if ((high < limit) & (sums.failed < sums.attacked)).all() else OPEN


def _perceptibility(statuses: pd.DataFrame, attack: str) -> tuple[str, ...]:
    found = {task: rows for task, rows in _by_task(statuses, attack).items() if len(rows)}
    value, verdict = "", ABSENT
    if _asked(statuses, attack) and found:
        rows = pd.concat(found.values())
        means, errors = 1000 * rows.perceptibility_mean, 1000 * rows.perceptibility_se
        texts = [
            f"{task} {1000 * values.perceptibility_mean.min():.2f} to {1000 * values.perceptibility_mean.max():.2f}"
            for task, values in found.items()
        ]
        value = ", ".join(texts) + f" ± {errors.max():.2f} at most (× 10⁻³)"
        signs = {_below(means, errors, 3.0), _below(-means, errors, -1.5)}
        verdict = FAILS if FAILS in signs else OPEN if OPEN in signs else HOLDS
    return (
        f"The mean perceptibility of a source's perturbations is 1.5 to 3.0 × 10⁻³: {ATTACKS[attack]}",
        "3.5.3",
        f"Mean over the images with targets, smallest and largest over the sources of a task. {_PRINTED} Holds if the "
        "intervals of all are within the paper's range, does not if one lies outside.",
        value,
        verdict,
    )


def _rounded(cells: pd.DataFrame, attack: str) -> tuple[str, ...]:
    own = cells[(cells.group == "single") & cells.white_box & (cells.attack == attack)]
    both = own[own.pixels == "float"].merge(
        own[own.pixels == "8-bit"], on=_CELL, suffixes=("", "_rounded"), validate="one_to_one"
    )
    value, verdict = "", ABSENT
    if len(both):
        rounded = both.drop_rounded.mean()
        exact, se = _mean(both["drop"], both.drop_se)
        value = f"mean drop {rounded:z.1f} on 8-bit pixels, {exact:.1f} ± {se:.1f} on float pixels, {_cells(len(both))}"
        verdict = OPEN
        if exact > 0 and _resolved(exact, se):
            verdict = HOLDS if abs(rounded - exact) <= exact / 10 else FAILS
    return (
        f"Rounding the perturbed image to 8 bits matters little: {ATTACKS[attack]}",
        "our question, the paper truncates",
        "Mean drop under the network's own perturbation on rounded and on float pixels; holds if they differ at most "
        "by a tenth of the latter, not resolved if that is not resolved from 0. Both are of the same images, so their "
        "difference is surer than either.",
        value,
        verdict,
    )
