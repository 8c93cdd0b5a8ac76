"""What the rules share: the package, the configuration, and the patterns of names.  No rule."""

import shlex
import sys
from functools import partial
from pathlib import Path

# The checkout; `workflow.basedir` is that of the importer where this is a module.
HERE = Path(str(workflow.current_basedir)).parent

if not (HERE / "dag").is_dir():
    raise WorkflowError(f"there is no package dag in {HERE}: clone the workflow and give the path of its Snakefile")

# The rules and the scripts of the jobs import the package from the checkout.
sys.path.insert(0, str(HERE))
shell.prefix(f'export PYTHONPATH={shlex.quote(str(HERE))}"${{{{PYTHONPATH:+:$PYTHONPATH}}}}"; ')

from snakemake.common.configfile import load_configfile
from snakemake.logging import logger

from dag.data.voc import FILES
from dag.report import description
from dag.workflow import comparisons, configuration, costs, digests, jobs, layers, paths, plan
from dag.workflow.jobs import code
from dag.workflow.names import CONTROLS, DRAWN_PATTERN, REPEATED_PATTERN, SCALED_PATTERN, SOURCE_PATTERN, SUM_PATTERN
from dag.workflow.plan import one_of

for name in layers.DEFAULTS:

    configfile: HERE / "config" / f"{name}.yaml"


defaults = layers.defaults(HERE / "config")
try:
    if workflow.is_main_process and workflow.modifier.is_main_snakefile():
        overlays = [load_configfile(file) for file in workflow.config_settings.configfiles]
        layers.check_experiment(defaults, *overlays, workflow.config_settings.config)
    # a module's `config` is an overlay, too
    config = layers.with_defended(layers.without_nulls(layers.merged(defaults, config)))
    configuration.check(config, HERE / "config/schemas/config.schema.yaml")
    config = description.with_kind(configuration.with_sizes(configuration.with_local_voc(config)))
    configuration.check_lists(config)
except ValueError as error:
    raise WorkflowError(str(error))

# A module may have a `prefix`.  Snakemake adds it to inputs, outputs and logs, `paths.told` to parameters.
moved = {folder: str(workflow.modifier.modify_path(folder)) for folder in ("resources/", "results/")}
if any(folder != place for folder, place in moved.items()):
    config["folders"] = moved

# What a run on GPUs will cost is said before it is started.
if workflow.is_main_process and costs.gpus(config, plan.networks(config)):
    logger.info(costs.summary(config))

product = partial(plan.product, config)
training = partial(plan.training, config)


def lists_of(*image_sets):
    """Lists of images.

    How old a list is does not matter, the digests of its images do (`jobs.shard_contents`).  Images of the miniature may
    be made anew in this run: what depends on them is then planned because of their list.  A bare name, of a folder, could
    be meant for a target.
    """
    return [
        (
            file
            if config["image_sets"][name].get("made_by") == "mini"
            else ancient(file if "/" in file else str(Path(file).absolute()))
        )
        for name in image_sets
        for file in paths.image_lists(config, name)
    ]


def forget_second_names():
    """At the end of a run, when Snakemake has noted which shards are finished."""
    from dag.workflow import store  # not in every job: it imports h5py

    for folder in Path(paths.results(config)).glob("*/perturbations/*"):
        store.forget(folder)


def no_such_target(name):
    raise WorkflowError(plan.unknown_target(config, name))


def exported():
    if not config["export"]:
        raise WorkflowError("export names nothing; say what: --config 'export={mini-test: [mini-fcn-vgg]}'")
    return paths.exported(config)


def read_log(path):
    """What a job wrote; nothing if it did not come so far."""
    return Path(path).read_text(errors="replace") if Path(path).is_file() else ""


onsuccess:
    forget_second_names()


onerror:
    forget_second_names()
    logger.error(plan.advice("".join(Path(file).read_text() for file in log), config, read=read_log))


wildcard_constraints:
    experiment=config["experiment"],
    image_set="[a-z0-9-]+",
    network="[a-z0-9-]+",
    victim="[a-z0-9-]+",
    body="[a-z0-9-]+",
    source=REPEATED_PATTERN,
    combination=rf"{SOURCE_PATTERN}(\+{SOURCE_PATTERN})+",
    milli="[1-9][0-9]*",
    control=one_of(CONTROLS),
    shard=r"\d{4,6}",
    file=one_of(config["downloads"]),
