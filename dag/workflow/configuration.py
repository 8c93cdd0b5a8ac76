"""Checks of the configuration: every mistake is reported in one sentence before anything runs."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from string import Formatter

import jsonschema
import yaml

from dag.data import image_sets
from dag.data.classes import ClassList
from dag.data.readers import reader_of
from dag.workflow import class_checks, comparisons, paths, plan
from dag.workflow.names import (
    DEFENCES,
    DEFENDED_SOURCES,
    DRAWN,
    OBJECTNESS,
    PerturbationName,
    check_pixels,
    parse,
    stage_iterations,
)
from dag.workflow.plan import did_you_mean

ROOT = Path(__file__).parents[2]
RESERVED = ("all", "export", *plan.ABOUT)

# Modules of networks that have moved: old name, new name.
MOVED = {
    f"dag.networks.{old}": f"dag.networks.{new}"
    for name in ("fcn", "deeplab", "faster_rcnn", "rfcn")
    for old, new in ((name, f"mini.{name}"), (f"{name}_caffe", f"caffe.{name}"))
}


def check(config: dict, schema: Path) -> None:
    """Refuse a configuration that cannot be run.

    Raises
    ------
    ValueError
        One sentence: an unknown key, a wrong type, an unknown network, perturbation, image set, or a
        table that cannot be made.
    """
    keywords = {"known": partial(_unknown, config), "renamed": _renamed}
    validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, keywords)
    errors = list(validator(yaml.safe_load(schema.read_text())).iter_errors(config))
    renamed = [error for error in errors if error.validator == "renamed"]
    error = jsonschema.exceptions.best_match(renamed or errors)
    if error:
        place = ".".join(map(str, error.absolute_path)) or "top level"
        raise ValueError(f"configuration, {place}: {_plain(error)}")
    for name, entry in config["networks"].items():
        with _at(f"networks.{name}"):
            for file in entry.get("files", {}).values():
                if file not in config["downloads"] and "/" not in file:
                    raise ValueError(
                        f"file {file!r} is not in downloads; a file of your own is given by its path, ./{file} for one "
                        "in the working directory"
                    )
            if "of" in entry:
                _check_defence(config, name)
                continue
            if "training" in entry:
                _check_training(config, name)
            _check_function(entry["architecture"])
            parent = entry.get("parent", name)
            if config["networks"][parent].get("lineage") != entry.get("lineage"):
                raise ValueError(f"parent {parent!r} is of another lineage; give both the same")
    for name, entry in config["classes"].items():
        with _at(f"classes.{name}"):
            ClassList.of(entry)
    with _at("weights"):
        if config["weights"] and not Path(config["weights"]).expanduser().is_dir():
            raise ValueError(f"{config['weights']} is not a folder; name one, or leave it out")
    for file, entry in config["downloads"].items():
        with _at(f"downloads.{file}"):
            if "archive" in entry and "urls" not in config["downloads"].get(entry["archive"], {}):
                raise ValueError(f"archive {entry['archive']!r} is not an entry of downloads with urls")
    with _at("networks"):
        if "none" in config["networks"]:
            raise ValueError("'none' means the clean image; give the network another name")
    for name, entry in config["image_sets"].items():
        with _at(f"image_sets.{name}"):
            class_checks.check_format(entry)
    with _at("pixels"):
        _check_pixels(config)
    for kind, name in [(key, name) for key in ("tables", "figures") for name in config[key]]:
        with _at(f"{kind}.{name}"):
            if name in RESERVED:
                raise ValueError("this name is taken by what is always made; choose another")
            if kind == "figures" and name in config["tables"]:
                raise ValueError("a table has this name as well; rename one of them")
            _check_pixels(config[kind][name])
            _check_product(config, config[kind][name])
    for image_set, names in config["export"].items():
        for name in names:
            with _at(f"export.{image_set}"):
                _check_row(config, "export", name)
    with _at("given_up"):
        sized = with_sizes(config) if config["given_up"] else config
        for entry in config["given_up"]:
            image_set, _, shard = entry.partition("/")
            if image_set not in config["image_sets"] or shard not in plan.all_shards(sized, image_set):
                raise ValueError(f"there is no shard {entry}; write image set/shard")
            if not plan.shards(sized, image_set):
                raise ValueError(f"no shard of {image_set} is left; take one out of the list")


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Say where in the configuration an error is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"configuration, {place}: {error}") from error


def _check_pixels(entry: dict) -> None:
    """Refuse pixels that no job makes."""
    for pixels in entry.get("pixels", []):
        check_pixels(pixels)


def _check_attack(config: dict, source: str) -> None:
    """Refuse settings of an attack that contradict each other."""
    network, _, variant = source.partition("@")
    settings, task = plan.attack(config, source), config["networks"][network]["task"]
    for name in plan.attacked(config, source):
        _check_source(config, name)
        if config["networks"][name]["task"] != task:
            raise ValueError(f"attack {variant}: an ensemble has one task, {task}, and {name} another; leave it out")
    members = settings.get("worst_of", [settings])
    if "worst_of" in settings and (more := [key for key in config["variants"][variant] if key != "worst_of"]):
        raise ValueError(f"attack {variant}: worst_of takes the settings of its members; leave {more[0]} out")
    if "worst_of" in settings and any("ensemble" in one for one in members):
        raise ValueError(f"attack {variant}: an ensemble is no member of worst_of; leave it out")
    if len({_begins(one, task) for one in members}) > 1:
        raise ValueError(
            f"attack {variant}: the attacks of worst_of have one set of targets and one start, those of the first; "
            "name attacks that agree in targets, rules of dag, start, budget and eps, on objectness or not"
        )
    for one in members:
        class_checks.check_labels(config, network, one, f"attack {variant or task}")
        if problem := contradiction(one, task):
            raise ValueError(f"attack {variant or task}: {problem}")
        if "function" in one:
            _check_function(one["function"])
        if not Path(one.get("perturbation", ".")).is_dir():
            raise ValueError(f"attack {variant}: there is no folder {one['perturbation']} in {Path.cwd()}")


def _begins(settings: dict, task: str) -> tuple:
    """What decides the targets and the start of an attack."""
    objective, start = settings.get("objective"), settings.get("start", "zero")
    targets = settings.get("targets", "foreground") if task == "segmentation" else None
    ball = settings.get("budget"), settings.get("eps")
    rules = (settings.get("rules"), str(settings.get("options", {}))) if objective in (None, "dag") else None
    proposals = tuple(settings.get(key) for key in ("nms", "limit", "overlap", "confidence"))
    return targets, start, ball, rules, proposals, objective if objective in OBJECTNESS else None


def contradiction(settings: dict, task: str) -> str | None:
    """The contradiction in the settings of an attack, as a sentence; None if there is none."""
    objective, steps, budget = (settings.get(key) for key in ("objective", "steps", "budget"))
    dag = objective in (None, "dag")
    if task == "detection" and settings.get("precision") == "bf16":
        return "precision bf16 is for segmentation, proposals need more digits; choose tf32 or fp32"
    if settings.get("precision", "fp32") != "fp32" and not (dag and steps in (None, "max") and budget is None):
        return "precision below fp32 is for Dense Adversary Generation without a budget; leave it out"
    if (budget is None) != ("eps" not in settings):
        return "eps is the radius of a budget; give both, `budget: linf` and `eps: 8`, or neither"
    if budget is None and (steps == "apgd" or settings.get("start") == "uniform" or "stages" in settings):
        return "apgd, a uniform start and stages need a budget; give `budget: linf` and `eps: 8`"
    if steps == "apgd" and objective in ("segpgd", "tsallis"):
        return f"apgd compares values of one loss, and {objective} changes from step to step; choose another objective"
    own = {"function", "perturbation"} & settings.keys()
    pushed = objective in (None, "dag", "targeted") and not own
    if task == "segmentation" and settings.get("targets") == "all" and pushed:
        return "background has no other label to go to; leave `targets: all` out, or choose another objective"
    if task == "segmentation" and settings.get("options", {}).get("strength") is not None:
        return "strength is the 0.8 rule, about proposals; it is for detection"
    if dag and steps == "apgd":
        return "apgd follows the value of a loss, and dag has none; choose another objective"
    moves = [
        key
        for key in ("objective", "steps", "start", "keep", "stages", "smooth", "diversity", "scales")
        if key in settings
    ]
    if "perturbation" in settings and (others := [key for key in (*moves, "function") if key in settings]):
        return f"the perturbation is there already; leave {others[0]} out"
    if "function" in settings and moves:
        return f"the function does all by itself; leave {moves[0]} out"
    if "ensemble" in settings and (others := {"perturbation", "function", "diversity"} & settings.keys()):
        return f"an ensemble has no {min(others)}; leave one of them out"
    if "unclipped" in settings and "perturbation" not in settings:
        return "unclipped is about the files of a `perturbation`; leave it out"
    if "arguments" in settings and "function" not in settings:
        return "arguments are those of a function; name it, path/to/file.py:function"
    if not dag and "options" in settings:
        return f"options change the rules of dag; the objective {objective} has none"
    if "diversity" in settings and objective in OBJECTNESS:
        return f"{objective} attacks the objectness of anchors, which diversity does not move; leave diversity out"
    if task == "segmentation" and objective in OBJECTNESS:
        return f"{objective} attacks the objectness of proposals; it is for detection"
    if task == "detection" and objective == "mce-bal":
        return "mce-bal weights pixels by the frequency of their class; it is for segmentation"
    if (smooth := settings.get("smooth", 0)) and (smooth % 2 == 0 or smooth < 3):
        return "smooth is the size of a kernel with a centre; give an odd number, 3 or more"
    if "stages" in settings and abs(sum(share for _, share in settings["stages"]) - 1) > 1e-6:
        return "the shares of the iterations in stages must add up to 1"
    if "stages" in settings and settings["stages"][-1][0] != 1:
        return "the last of the stages must have the budget itself, a multiple of 1"
    if "stages" in settings and "iterations" in settings and min(stage_iterations(settings)) < 1:
        return f"{settings['iterations']} iterations are too few for {len(settings['stages'])} stages; give more"
    return None


def _check_function(name: str) -> None:
    """Refuse a missing file or function.  Nothing is imported: torch would take seconds."""
    module, _, function = name.partition(":")
    if module in MOVED:
        raise ValueError(f"{module} has moved; write {MOVED[module]}:{function}")
    own = module.endswith(".py")
    path = Path(module) if own else ROOT / (module.replace(".", "/") + ".py")
    if not own and module.split(".")[0] != "dag":  # for installed packages only the package itself is checked
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"there is no package {package!r}; install it")
        return
    if not path.is_file():
        where = f"in {Path.cwd()}" if own else "in the project"
        raise ValueError(f"there is no {module} {where}")
    try:
        body = ast.parse(path.read_bytes()).body
    except SyntaxError as error:
        raise ValueError(f"{module} is not Python ({error})") from error
    names = {name for statement in body for name in _bound(statement)}
    if function not in names and "*" not in names:
        raise ValueError(f"there is no {function} in {module}{did_you_mean(function, names)}")


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a statement of a module binds; "*" if it may be any."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from _bound(child)


def _check_defence(config: dict, name: str) -> None:
    """Refuse an unknown defence, one that lacks an argument, or a cycle of defences."""
    entry, chain = config["networks"][name], [name]
    for key in ("architecture", "training"):
        if key in entry:
            raise ValueError(f"{key} is that of the network which it is `of`, {entry['of']}; leave it out")
    while (of := config["networks"][chain[-1]].get("of")) is not None:
        if of in chain:
            raise ValueError(f"it is a defence of {entry['of']!r}, which is one of it; name a network of its own")
        chain.append(of)
    if entry["task"] != (task := config["networks"][chain[-1]]["task"]):
        raise ValueError(f"its task is that of {chain[-1]}, {task}; leave it out")
    defence = entry["defence"]
    if ":" in defence:
        _check_function(defence)
        return
    if defence not in DEFENCES:
        raise ValueError(
            f"there is no defence {defence!r}{did_you_mean(defence, DEFENCES)}; known are {', '.join(DEFENCES)}, and "
            "your own, path/to/file.py:function"
        )
    wanted, given = {name for _, name, *_ in Formatter().parse(DEFENCES[defence]) if name}, entry.get("arguments", {})
    if wanted != set(given):
        raise ValueError(
            f"the arguments of {defence} are {', '.join(sorted(wanted)) or 'none'}, not {', '.join(given) or 'none'}"
        )


def _check_source(config: dict, network: str) -> None:
    """Refuse a source behind one of our defences that has no gradient or draws random numbers."""
    for name in plan.layered(config, network):
        defence = config["networks"][name].get("defence", "")
        if defence in DEFENCES and defence not in DEFENDED_SOURCES:
            raise ValueError(
                f"network {network!r} is behind the defence {defence}, which has no gradient or is random, so it is no "
                f"source; name {config['networks'][name]['of']} as the source and it as a victim"
            )


def _check_training(config: dict, name: str) -> None:
    """Refuse a training by a recipe for another task, or from weights that do not exist."""
    entry = config["networks"][name]
    training = entry["training"]
    if "body" in training:
        return
    task = config["recipes"][training["recipe"]]["task"]
    image_set = config["image_sets"][training["image_set"]]
    if image_set.get("format", "voc") != "voc" or {*map(_listed_classes, (entry, image_set))} != {"voc"}:
        raise ValueError("a recipe trains on images in VOC's layout, with VOC's classes; choose such an image set")
    if task != entry["task"]:
        raise ValueError(f"recipe {training['recipe']!r} is for {task}, the network for {entry['task']}")
    initial, stages = training["initial"], {name}
    if isinstance(initial, str) and initial not in config["downloads"] and "/" not in initial:
        raise ValueError(f"initial weights {initial!r} are not in downloads")
    while isinstance(initial, dict):
        stage = initial["network"]
        if "recipe" not in config["networks"].get(stage, {}).get("training", {}):
            raise ValueError(f"initial network {stage!r} is not a network that a recipe trains")
        if stage in stages:
            raise ValueError(f"it starts from {stage!r}, which starts from it; name a file for one of them")
        stages.add(stage)
        initial = config["networks"][stage]["training"]["initial"]


def _listed_classes(entry: dict) -> str:
    return entry.get("classes", "voc")


def _unknown(config: dict, _, keys: list[str], name: str, __) -> Iterator[jsonschema.ValidationError]:
    """Keyword `known` of the schema: a name has to be a key of one of these mappings of the configuration."""
    mappings = [config[key] for key in keys if isinstance(config.get(key), dict)]
    known = [one for mapping in mappings for one in mapping]
    if len(mappings) == len(keys) and name not in known:
        yield jsonschema.ValidationError(f"{name!r} is not in {' or '.join(keys)}{did_you_mean(name, known)}")


def _renamed(_, new: str, *__) -> Iterator[jsonschema.ValidationError]:
    """Keyword `renamed` of the schema: a key under its old name."""
    yield jsonschema.ValidationError(f"this key is called {new} now; rename it")


def _plain(error: jsonschema.ValidationError) -> str:
    """A jsonschema error as a sentence that makes sense without the schema."""
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = min(set(error.instance) - set(known), key=str)
        keys = ", ".join(known) or "names of another form"
        return f"unknown key {unknown!r}; known keys are {keys}{did_you_mean(str(unknown), known)}"
    if error.validator == "oneOf" and all("required" in option for option in error.validator_value):
        return f"give exactly one of {' and '.join(option['required'][0] for option in error.validator_value)}"
    if error.validator == "contains":
        return f"{error.instance!r} must contain {error.validator_value['const']!r}"
    return error.message


def _check_product(config: dict, entry: dict) -> None:
    others = entry.get("other_image_sets", {})
    if others and entry.get("kind") == "gallery":
        raise ValueError("a gallery shows one image set; make one gallery for each")
    for image_set in (entry["image_set"], *others.values()):
        if config["image_sets"][image_set].get("repeated"):
            raise ValueError(f"image set {image_set!r} may list an image twice; it is for training alone")
    _check_choice(entry)
    _check_order(entry)
    if entry.get("kind") == "lineage" and (others or len(plan.tasks(config, plan.victims(entry))) > 1):
        raise ValueError("losses of two tasks or image sets have no mean; make one figure for each")
    if entry.get("kind") == "shapes":
        class_checks.check_shapes(config, entry)
        _check_source(config, entry["network"])
    comparisons.series(config, entry)
    for row in plan.named(entry):
        try:
            _check_row(config, entry.get("kind", entry.get("layout")), row)
        except ValueError as error:
            raise ValueError(f"perturbation {row!r}: {error}") from error
    _check_paper(entry)
    class_checks.check_classes(config, entry)


def _check_choice(entry: dict) -> None:
    """Refuse a way to choose images, or an arrangement, that does not fit the rest of a figure."""
    if "choose" in entry and entry["kind"] != "examples":
        raise ValueError("choose is for examples, whose victims have clean scores; leave it out")
    if entry.get("choose") == "clean" and not isinstance(entry.get("images"), int):
        raise ValueError("choose has no say in images that are named; give their number")
    if entry.get("arrangement") == "rows":
        for panel in entry.get("panels", []):
            if len(panel["victims"]) > 1:
                raise ValueError(
                    f"a panel of the arrangement rows has one victim, "
                    f"not {len(panel['victims'])}; make a panel for each, or choose another arrangement"
                )


def _check_order(entry: dict) -> None:
    """Refuse `order` for figures other than a matrix."""
    if "order" in entry and entry["kind"] != "matrix":
        raise ValueError("order is for the rows and columns of a matrix; leave it out")


def _check_paper(entry: dict) -> None:
    """Refuse values of the paper without a cell in the table."""
    white_box = entry.get("layout") == "white-box"
    known_rows = entry["sources"] if white_box else plan.rows(entry)
    known_columns = ("ORIG", "ADVR", "PERM", "p") if white_box else (*plan.victims(entry), "p")
    for row, columns in entry.get("paper", {}).items():
        if row not in known_rows:
            raise ValueError(f"paper names the row {row!r}, which the table does not have")
        for column in columns:
            if column not in known_columns:
                raise ValueError(
                    f"paper names the column {column!r} in row {row!r}; known are {', '.join(known_columns)}"
                )


def _check_row(config: dict, kind: str, row: str) -> None:
    """Refuse a perturbation that no rule makes, or that a figure of this kind cannot show."""
    recipe = parse(row)
    if recipe.control == DRAWN:
        raise ValueError("draws are asked for by a white-box table, `draws: 3`; name the source alone")
    for source in recipe.sources:
        _check_attack(config, source)
    if recipe.draw > config["permutations"]:
        raise ValueError(f"there are only {config['permutations']} draws, see permutations")
    if kind in ("examples", "gallery") and (recipe.is_mean or not recipe.sources):
        raise ValueError("a panel shows one perturbation; name a source, a sum, or one draw of a control")
    if kind == "export" and (recipe.is_mean or not recipe.sources):
        raise ValueError(f"perturbation {row!r} is no array; name a source, a sum, or one draw of a control")
    if kind in ("density", "convergence", "matrix", "white-box") and (
        recipe != PerturbationName(recipe.sources) or len(recipe.sources) != 1
    ):
        raise ValueError("only sources are shown here; name one, without a sum, a scale or a control")
    if kind == "lineage" and (len(recipe.sources) != 1 or recipe.control):
        raise ValueError("only what one network has made stands in a lineage; name a source, or one scaled, a.p-4")
    if kind == "lineage" and len(plan.attacked(config, recipe.sources[0])) > 1:
        raise ValueError("an ensemble has no lineage; name a source that one network makes")
    if kind == "strength" and (recipe.scale or not recipe.sources):
        raise ValueError("the figure scales a source, a sum, or a control of these; name one, without .p-")
    if kind == "intervals" and (recipe.control or not recipe.sources):
        raise ValueError("the figure adds the controls itself; name a source or a sum")


def with_local_voc(config: dict) -> dict:
    """The configuration with the image sets of a VOC folder that the user has named by `voc`.

    The folder is not modified: its own lists define the images and their number.  Image sets whose
    list is derived by a rule keep their size and digest.  `~` is the user's home folder.

    Raises
    ------
    ValueError
        If the folder does not exist, or one of its lists that is needed.
    """
    if config["voc"] is None:
        return config
    folder = Path(config["voc"]).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"configuration, voc: {config['voc']} is not a folder; name the one that holds VOC2007/ and VOC2012/"
        )
    sets, used = {}, plan.used_image_sets(config)
    for name, entry in config["image_sets"].items():
        own = all(part["list"].startswith("{voc}/") for part in entry["parts"])
        lists = [Path(part["list"].format(voc=folder)) for part in entry["parts"]]
        if own and (name in used or all(path.is_file() for path in lists)):
            entry = {**entry, "size": sum(len(image_sets.read_ids(path)) for path in lists), "sha256": None}
        sets[name] = entry
    return {**config, "voc": str(folder), "image_sets": sets}


def with_sizes(config: dict) -> dict:
    """The configuration with the missing sizes of image sets, counted in their files.

    Raises
    ------
    ValueError
        If an image set that `all` needs says no size and cannot be read.
    """
    sets, used = dict(config["image_sets"]), plan.used_image_sets(config)
    for name, entry in sets.items():
        if "size" not in entry:
            reader = reader_of({"format": entry.get("format", "voc")})
            parts = paths.parts(config, name)
            if name in used or all(Path(part["list"]).exists() for part in parts):
                with _at(f"image_sets.{name}"):
                    sets[name] = entry | {"size": sum(len(reader.ids(part)) for part in parts)}
    return {**config, "image_sets": sets}


def check_lists(config: dict) -> None:
    """Refuse lists of images that no job can read.

    Lists below resources/ may still be (re)made by a rule, so their number of images is checked by the jobs.

    Raises
    ------
    ValueError
        If a list of an image set that `all` needs is not a list of images, or differs from the configuration.
    """
    for name in sorted(plan.used_image_sets(config)):
        entry, parts = config["image_sets"][name], paths.parts(config, name)
        if not all(Path(part["list"]).exists() for part in parts):
            continue
        if any(part["list"].startswith("resources/") for part in parts):
            for part in parts:
                image_sets.read_ids(part["list"])
        else:
            told = {"name": name, "sha256": None} | entry | {"parts": parts, "classes": config["classes"]["voc"]}
            reader_of(told).images()
