"""The workflow: what is planned, what is computed again, and what the user reads when something is wrong.

A copy of the workflow is run on a miniature of the miniature, three images and networks of three iterations, in a
folder of its own.
"""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
import yaml
from overlays import merge

from dag.workflow import digests, encoding, layers, plan, store

ROOT = Path(__file__).parents[2]
SUM = "mini-fcn-alex+mini-fr-zf-07"

# Two tables: the second shares a cell with the first, and has one of its own.
TINY = yaml.safe_load((ROOT / ".test" / "config.yaml").read_text())


def snakemake(workflow: Path, folder: Path, *arguments: str, overlay: dict | str | None = None, cores: int = 2):
    """Run Snakemake in a folder; returns its exit code and all that it prints."""
    with started(workflow, folder, *arguments, overlay=overlay, cores=cores) as process:
        text = process.communicate()[0]
    return process.returncode, text


@contextmanager
def started(workflow: Path, folder: Path, *arguments: str, overlay: dict | str | None = None, cores: int = 2):
    """Snakemake in a folder and in a group of processes of its own, as in a terminal; it ends with the block."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(workflow / "Snakefile")]
    command += ["--workflow-profile", str(workflow / "profiles" / "default"), "--directory", str(folder)]
    command += ["--cores", str(cores), *arguments]
    if isinstance(overlay, dict):
        file = folder.with_name(folder.name + ".yaml")
        file.write_text(yaml.safe_dump(overlay))
        overlay = str(file)
    if overlay is not None:
        command += ["--configfile", overlay]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def jobs(text: str) -> dict[str, int]:
    """Number of jobs of every rule in the first statistics that Snakemake prints."""
    lines = text.partition("Job stats:")[2].partition("total")[0].splitlines()
    return {name: int(count) for name, count in (line.split() for line in lines if re.fullmatch(r"\S+ +\d+", line))}


def outputs(text: str) -> list[str]:
    """Every file that Snakemake plans to make."""
    lines = re.findall(r"^    output: (.*)$", text, re.MULTILINE)
    return [file for line in lines for file in line.split(", ")]


def configuration(overlay: dict | None = None) -> dict:
    merged: dict = {}
    for name in layers.DEFAULTS:
        merged = merge(merged, yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text()))
    return merge(merged, overlay or {})


# What is planned


def test_all_and_every_table_and_figure_can_be_planned(workflow, tmp_path):
    config = configuration()
    names = [*config["tables"], *config["figures"]]
    code, text = snakemake(workflow, tmp_path, "--dry-run", "all", *names)
    assert code == 0, text
    planned = jobs(text)
    assert {name: planned.get(name) for name in ("all", *names)} == dict.fromkeys(("all", *names), 1)
    shards = len(plan.shards(config, "mini-test"))
    sources = {pair for entry in (config["tables"] | config["figures"]).values() for pair in plan.source_sets(entry)}
    assert planned["perturb"] == shards * len(sources)
    assert planned["tabulate"] == len(config["tables"])
    assert planned["predict"] == shards * sum(bool(plan.victims(config["tables"].get(name) or config["figures"][name]))
                                              for name in names)  # fmt: skip
    trained = {victim for name in names for victim in plan.victims((config["tables"] | config["figures"])[name])}
    trained |= {plan.network_of(source) for source, _ in sources}
    assert planned["train"] == len(trained)
    assert len(outputs(text)) == len(set(outputs(text)))


def test_table2_alone_plans_what_table_2_needs(workflow, tmp_path):
    code, text = snakemake(workflow, tmp_path, "--dry-run", "table2")
    assert code == 0, text
    table = configuration()["tables"]["table2"]
    files = outputs(text)
    trained = {Path(file).stem for file in files if re.match(r"resources/weights/[^/]*\.pt", file)}
    assert trained == set(table["victims"]) and not any(name.startswith(("mini-fcn", "mini-dl")) for name in trained)
    assert jobs(text)["train"] == 6
    made = {Path(file).parent.name for file in files if "/perturbations/" in file}
    sums = {row.removesuffix(".permuted") for row in table["perturbations"]} - {"none"}
    draws = {f"{row}-{draw}" for row in table["perturbations"] if row.endswith(".permuted") for draw in (1, 2, 3)}
    assert made == sums | draws
    assert {file.split("/")[3] for file in files if "/cells/" in file} == {"table2"}
    assert [file for file in files if "/scores/" in file] == ["results/mini/scores/table2.json"]
    assert {Path(file).stem for file in files if "/tables/" in file or "/figures/" in file} == {"table2"}


OVERLAYS = sorted(path.stem for path in (ROOT / "config").glob("*.yaml") if "\nexperiment: " in path.read_text())


# What an overlay is laid upon, and images and lists that the user brings.
BELOW = {"robustness": ("pocket", "zoo")}
BROUGHT = {"camvid": "CamVid/test"}
LISTS = {"robustness": {"few-masks": 11, "few-boxes": 13}}


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "config"])
def test_every_experiment_can_be_planned(workflow, tmp_path, name):
    overlays = [str(workflow / "config" / f"{each}.yaml") for each in (*BELOW.get(name, ()), name)]
    for file, size in LISTS.get(name, {}).items():
        path = tmp_path / f"resources/image_sets/{file}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"2007_{number:06d}\n" for number in range(size)))
    code, text = snakemake(workflow, tmp_path, "--dry-run", "all", "--configfile", *overlays)
    if name in BROUGHT:  # which a rule of the user's may make, so Snakemake is the one to miss it
        assert code == 1 and re.search(f"affected files:\\s+{BROUGHT[name]}$", text, re.MULTILINE), text
        return
    assert code == 0, text
    # a number that one Snakemake bears
    assert jobs(text)["all"] == 1 and sum(jobs(text).values()) < 5000


@pytest.mark.slow
def test_a_great_image_set_is_planned_in_seconds(workflow, tmp_path):
    """100,000 images; their number stands in the configuration, so no list of them is needed."""
    overlay = {"experiment": "great", "image_sets": {"mini-test": {"size": 100_000}}, "shard_size": 2000}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, text = snakemake(workflow, tmp_path, "--dry-run", "table2", overlay=overlay)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0 and jobs(text)["perturb"] == 50 * 4, text
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_there_may_be_more_than_ten_thousand_shards(workflow, tmp_path):
    overlay = {"experiment": "great", "image_sets": {"mini-test": {"size": 10_001}}, "shard_size": 1}
    shard = "results/great/mini-test/perturbations/mini-fcn-alex/10000.h5"
    code, text = snakemake(workflow, tmp_path, "--dry-run", shard, overlay=overlay)
    assert code == 0 and jobs(text)["perturb"] == 1, text


@pytest.mark.parametrize(
    ("overlay", "sentence"),
    [
        (
            {"tables": {"table2": {"victims": ["fr-zf"]}}},
            "configuration, tables.table2.victims.0: 'fr-zf' is not in networks; did you mean 'fr-zf-07'?",
        ),
        ({"shards": 3}, "configuration, top level: unknown key 'shards'; known keys are attacks, "),
    ],
)
def test_a_mistake_in_the_configuration_is_one_sentence(workflow, tmp_path, overlay, sentence):
    code, text = snakemake(workflow, tmp_path, "--dry-run", "all", overlay=overlay)
    assert code == 1
    assert text.count("configuration, ") == 1 and f"\n{sentence}" in text
    # Snakemake adds where the error was raised
    assert "Traceback" not in text and len(text.partition("WorkflowError")[2].splitlines()) == 3, text


def test_an_unknown_target_is_told_the_known_ones(workflow, tmp_path):
    code, text = snakemake(workflow, tmp_path, "--dry-run", "table5")
    known = ["all", *configuration()["tables"], *configuration()["figures"]]
    assert code == 1
    assert f"'table5' is no table or figure; there are {', '.join(known)}; did you mean 'table4'?\n" in text, text
    # what has a folder is a file, and Snakemake's to miss
    code, text = snakemake(workflow, tmp_path, "--dry-run", "results/mini/tables/table5.csv")
    assert code == 1 and "MissingRuleException" in text, text


def test_a_second_experiment_has_a_name_of_its_own(workflow, tmp_path):
    """And what it trains and makes is not that of the first."""
    code, first = snakemake(workflow, tmp_path, "--dry-run", "all", overlay={"experiment": "mini"})
    assert code == 0, first
    code, text = snakemake(workflow, tmp_path, "--dry-run", "all", "--config", "seed=7")
    assert code == 1 and "configuration, seed: 7 in place of 2017 makes another experiment" in text, text
    code, text = snakemake(workflow, tmp_path, "--dry-run", "all", "--config", "seed=7", "experiment=seed-7")
    assert code == 0, text
    shared = set(outputs(first)) & set(outputs(text))
    assert shared and all(file.startswith("resources/mini/") for file in shared), shared


# What is computed


def contents(folder: Path) -> dict[str, int]:
    """Every shard and weight file, with the time of its last change."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for kind in ("results/**/*.h5", "resources/**/*.pt", "resources/**/*.npz", "resources/**/*.jpg")
        for path in folder.glob(kind)
    }


def scores(folder: Path, table: str) -> dict[tuple[str, str], dict]:
    found = json.loads((folder / "results" / "tiny" / "scores" / f"{table}.json").read_text())
    return {(victim["victim"], cell["perturbation"]): cell for victim in found for cell in victim["cells"]}


def log(folder: Path, rule: str, rest: str) -> str:
    return (folder / "logs" / rule / "tiny" / f"{rest}.txt").read_text()


def changed(**entries) -> dict:
    """The tiny configuration with another table `small`."""
    return merge(TINY, {"tables": {"small": entries}})


@pytest.fixture(scope="module")
def finished(workflow, tmp_path_factory) -> Path:
    """A run that is complete."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    code, text = snakemake(workflow, folder, "small", "other", overlay=TINY)
    assert code == 0, text
    assert {"perturb": 4, "combine": 2, "control": 2, "predict": 4, "train": 2, "pretrain": 2}.items() <= jobs(
        text
    ).items()
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it to go on with."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.mark.slow
def test_a_run_makes_its_tables_and_keeps_no_sums(finished):
    made = {str(path.relative_to(finished / "results" / "tiny")) for path in (finished / "results").rglob("*.*")}
    for table in ("small", "other"):
        assert {f"tables/{table}.{kind}" for kind in ("csv", "md", "tex", "svg", "png")} <= made
    perturbations = {Path(path).parent.name for path in made if path.startswith("mini-test/perturbations/")}
    assert perturbations == {"mini-fcn-alex", "mini-fr-zf-07"}
    assert not [path for path in made if path.endswith((".partial", ".parts"))]
    shard = finished / "results/tiny/mini-test/predictions/mini-fr-zf-07"
    assert store.read_header(shard / f"{SUM}.float" / "0001.h5", "predictions")["ids"] == ["001003"]
    assert set(scores(finished, "small")) == {
        (victim, row)
        for victim in ("mini-fcn-alex", "mini-fr-zf-07")
        for row in ("none", "mini-fcn-alex", SUM, f"{SUM}.permuted-1", f"{SUM}.permuted")
    }
    # the cells that both tables show are computed once, by whichever came first
    lines = [log(finished, "predict", f"{table}/mini-test/0000") for table in ("small", "other")]
    counted = [int(number) for text in lines for number in re.findall(r"mini-fr-zf-07: (\d) cells computed", text)]
    assert sum(counted) == 5, lines


# The example of config/README.md behind a rule of one's own.
(MODULE,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "config" / "README.md").read_text(), re.M | re.S)
MINE = """
rule mine:
    input: "adversarial/results/tiny/tables/small.csv"
    output: "mine.csv"
    shell: "cp {input} {output}"

"""


def imported(workflow: Path, folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a workflow that has this one for a module."""
    folder.mkdir(exist_ok=True)
    module = MODULE.replace('"dag/Snakefile"', f'"{workflow}/Snakefile"').replace('{"experiment": "mine"}', repr(TINY))
    (folder / "Snakefile").write_text(MINE + module)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def test_as_a_module_of_another_workflow_everything_is_below_its_prefix(workflow, tmp_path):
    code, text = imported(workflow, tmp_path / "work", "--dry-run", "mine", "dag_all")
    assert code == 0, text
    assert {"dag_train": 2, "dag_perturb": 4, "dag_predict": 4, "mine": 1, "dag_all": 1}.items() <= jobs(text).items()
    assert [file for file in outputs(text) if not file.startswith("adversarial/")] == ["mine.csv"]
    # its mistakes are its own, and the importer's targets not its business
    code, text = imported(workflow, tmp_path / "work", "--dry-run", "table5")
    assert code == 1 and "MissingRuleException" in text, text


@pytest.mark.slow
def test_a_module_computes_what_the_workflow_does(workflow, finished, tmp_path):
    folder = tmp_path / "work"
    code, text = imported(workflow, folder, "mine", "dag_all")
    assert code == 0, text
    assert {path.name for path in folder.iterdir()} == {".snakemake", "Snakefile", "adversarial", "mine.csv"}
    for table in ("small", "other"):
        assert scores(folder / "adversarial", table) == scores(finished, table)
    assert (folder / "mine.csv").read_bytes() == (finished / "results/tiny/tables/small.csv").read_bytes()
    page = (folder / "adversarial/results/tiny/index.html").read_text()
    assert 'href="tables/small.csv"' in page and "adversarial/" not in page
    code, text = imported(workflow, folder, "--dry-run", "mine", "dag_all")
    assert code == 0 and "Nothing to be done" in text, text


@pytest.mark.slow
def test_a_second_run_does_nothing(workflow, run):
    before = contents(run)
    code, text = snakemake(workflow, run, "small", "other", overlay=TINY)
    assert code == 0 and "Nothing to be done" in text, text
    assert contents(run) == before
    # nor after a pull that gave the scripts new time stamps
    for script in (workflow / "scripts").rglob("*.py"):
        script.touch()
    code, text = snakemake(workflow, run, "--dry-run", "small", "other", overlay=TINY)
    assert code == 0 and "Nothing to be done" in text, text


def planned_shards(text: str) -> set[tuple[str, str]]:
    """(perturbation or table, shard) of the attacks and predictions that Snakemake plans."""
    paths = [Path(file) for file in outputs(text) if "/perturbations/" in file or "/cells/" in file]
    return {(path.parts[-2] if path.suffix == ".h5" else path.parts[-3], path.stem) for path in paths}


SUMS = {(SUM, "0001"), (f"{SUM}.permuted-1", "0001")}
SHOWN = {("small", "0001"), ("other", "0001")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "attacked"),
    [
        ("JPEGImages/{}.jpg", {"mini-fcn-alex", "mini-fr-zf-07"}),
        ("SegmentationClass/{}.png", {"mini-fcn-alex"}),
        ("Annotations/{}.xml", {"mini-fr-zf-07"}),
    ],
)
def test_another_image_or_annotation_plans_its_shard_and_the_tables(workflow, run, kind, attacked):
    """The third image alone is in the second shard; what comes out is what a run from the beginning gives."""
    folder, before = run / "resources" / "mini" / "test", contents(run)
    shutil.copy(folder / kind.format("001001"), folder / kind.format("001003"))
    code, text = snakemake(workflow, run, "small", "other", overlay=TINY)
    assert code == 0, text
    counted = {"combine": 1, "control": 1, "predict": 2, "score": 2, "tabulate": 2, "small": 1, "other": 1}
    # an image is also compared with the size in its annotation
    checked = 3 if "JPEG" in kind else 1
    assert jobs(text) == counted | {"perturb": len(attacked), "check_images": checked}
    assert planned_shards(text) == {(source, "0001") for source in attacked} | SUMS | SHOWN
    after = contents(run)
    assert {path for path in before if before[path] != after[path]} - {"resources/mini/test/JPEGImages/001003.jpg"} <= {
        path for path in before if path.endswith("0001.h5")
    }
    continued = {table: scores(run, table) for table in ("small", "other")}
    code, text = snakemake(workflow, run, "small", "other", overlay=TINY)
    assert code == 0 and "Nothing to be done" in text, text
    shutil.rmtree(run / "results")
    code, text = snakemake(workflow, run, "small", "other", overlay=TINY)
    assert code == 0 and {table: scores(run, table) for table in ("small", "other")} == continued, text


@pytest.mark.slow
def test_predictions_of_another_image_are_not_scored(workflow, run):
    """Without the trigger of parameters nothing is planned but the score; its job looks, and the advice helps."""
    folder, table = run / "resources" / "mini" / "test" / "JPEGImages", "results/tiny/scores/small.json"
    shutil.copy(folder / "001001.jpg", folder / "001003.jpg")
    (run / table).unlink()
    code, text = snakemake(workflow, run, table, "--rerun-triggers", "mtime", overlay=TINY)
    assert code == 1 and jobs(text) == {"score": 1}, text
    assert "Error: results/tiny/cells/small/mini-test/0001.json: the images have changed since" in text
    code, text = snakemake(workflow, run, table, overlay=TINY)
    assert code == 0 and jobs(text)["predict"] == 1, text


@pytest.mark.slow
def test_another_training_image_trains_again_who_learns_from_it(workflow, run):
    """The tiny lists of all networks hold the same images; label maps teach segmentation networks alone."""
    folder = run / "resources" / "mini" / "train" / "SegmentationClass"
    shutil.copy(folder / "000001.png", folder / "000002.png")
    code, text = snakemake(workflow, run, "--dry-run", "small", "other", overlay=TINY)
    assert code == 0, text
    assert [file for file in outputs(text) if file.endswith(".pt")] == ["resources/weights/mini-fcn-alex.pt"]


@pytest.mark.slow
def test_files_that_are_touched_moved_or_removed_plan_nothing(workflow, run):
    folder = run / "resources" / "mini" / "test"
    for path in folder.rglob("*.*"):
        path.touch()
    code, text = snakemake(workflow, run, "--dry-run", "small", "other", overlay=TINY)
    assert code == 0 and "Nothing to be done" in text, text
    shutil.rmtree(folder)
    code, text = snakemake(workflow, run, "--dry-run", "small", "other", overlay=TINY)
    assert code == 0 and "Nothing to be done" in text, text


@pytest.mark.slow
def test_another_seed_of_the_images_plans_all_that_sees_them(workflow, run):
    """At once, though it is not known at planning what the new images will be; and nothing a second time."""
    overlay = merge(TINY, {"mini": {"test": {"seed": 5}}})
    code, text = snakemake(workflow, run, "small", "other", overlay=overlay)
    assert code == 0, text
    assert jobs(text).items() >= {"make_mini_test": 1, "perturb": 4, "predict": 4, "score": 2}.items()
    assert "train" not in jobs(text)
    code, text = snakemake(workflow, run, "--dry-run", "small", "other", overlay=overlay)
    assert code == 0 and "Nothing to be done" in text, text


@pytest.mark.slow
def test_images_that_were_made_in_a_run_are_known_to_the_next_also_on_a_cluster(workflow, tmp_path):
    """Snakemake evaluates the parameters of a job again before it runs here, and not before a cluster runs it."""
    table, overlay = "results/tiny/tables/other.csv", tmp_path / "tiny.yaml"
    overlay.write_text(yaml.safe_dump(TINY))
    code = (
        "import sys, snakemake.jobs; snakemake.jobs.Job.reset_params_and_resources = lambda self: None; "
        "from snakemake.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, table, "--snakefile", workflow / "Snakefile", "--cores", "2"]
    command += ["--workflow-profile", workflow / "profiles" / "default", "--configfile", overlay]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    code, text = snakemake(workflow, tmp_path, "--dry-run", table, overlay=str(overlay))
    assert code == 0 and "Nothing to be done" in text, text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("JPEGImages/001003.jpg", "damaged image"),
        ("SegmentationClass/001001.png", "damaged image"),
        ("Annotations/001002.xml", "the annotation is damaged"),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_attacked(workflow, run, file, message):
    path, kind = run / "resources/mini/test" / file, {"J": "image", "S": "segmentation", "A": "detection"}[file[0]]
    path.write_bytes(path.read_bytes()[:150])
    check = f"results/tiny/mini-test/checked/{kind}.txt"
    code, text = snakemake(workflow, run, check, overlay=TINY)
    assert code == 1 and jobs(text) == {"check_images": 1}
    assert f"Error: resources/mini/test/{file}: {message}" in text
    # unless its shard is given up, as is said at the end
    shard = "0001" if "3" in path.stem[-1] else "0000"
    assert f"--config 'given_up=[mini-test/{shard}]'" in text
    code, text = snakemake(workflow, run, check, "--config", f"given_up=[mini-test/{shard}]", overlay=TINY)
    assert code == 0, text


@pytest.mark.slow
def test_damaged_scores_are_made_again_as_their_message_says(workflow, run):
    path, table = run / "results/tiny/scores/small.json", "results/tiny/tables/small.csv"
    path.write_bytes(path.read_bytes()[:100])
    code, text = snakemake(workflow, run, table, overlay=TINY)
    assert code == 1 and "Error: results/tiny/scores/small.json: damaged (" in text, text
    assert "delete it and run the workflow again" in text
    path.unlink()
    code, text = snakemake(workflow, run, table, overlay=TINY)
    assert code == 0, text


@pytest.mark.slow
def test_a_gallery_takes_its_cells_from_the_tables(workflow, run):
    before = contents(run)
    entry = {"kind": "gallery", "title": "All", "description": "", "image_set": "mini-test"}
    entry |= {"perturbations": ["mini-fcn-alex", SUM], "victims": ["mini-fcn-alex", "mini-fr-zf-07"]}
    overlay = merge(TINY, {"figures": {"gallery": entry}})
    code, text = snakemake(workflow, run, "gallery", overlay=overlay)
    assert code == 0, text
    assert jobs(text) == {"combine": 2, "predict": 2, "draw_gallery": 2, "write_gallery": 1, "gallery": 1}
    assert contents(run) == before
    folder = run / "results" / "tiny" / "galleries" / "gallery"
    # images x (themselves and two perturbations), and their label maps
    pictures = Counter(path.suffix for path in folder.glob("pictures/000[01]/**/[0-9]*"))
    assert pictures == {".webp": 3 * 3, ".png": 3}
    assert [path.name for path in sorted(folder.glob("details/*"))] == ["0000.js", "0001.js"]
    data = json.loads((folder / "data.js").read_text().removeprefix("gallery.start(").removesuffix(");\n"))
    assert data["images"]["id"] == ["001001", "001002", "001003"] and len(data["perturbations"]) == 2
    code, text = snakemake(workflow, run, "gallery", overlay=overlay)
    assert code == 0 and "Nothing to be done" in text, text


@pytest.mark.slow
def test_a_new_row_computes_its_own_cells(workflow, run):
    before, old = contents(run), scores(run, "small")
    row = "mini-fcn-alex@authors"
    overlay = changed(perturbations=[*TINY["tables"]["small"]["perturbations"], row])
    code, text = snakemake(workflow, run, "small", overlay=overlay)
    assert code == 0, text
    # the sums are temporary and made again; they need no network
    assert jobs(text) == {"perturb": 2, "combine": 2, "control": 2, "predict": 2, "score": 1, "tabulate": 1, "small": 1}
    after = contents(run)
    assert {path: after[path] for path in before} == before
    base = "results/tiny/mini-test"
    assert set(after) - set(before) == {
        f"{base}/{folder}/{shard}.h5"
        for folder in (
            f"perturbations/{row}",
            *(f"predictions/{v}/{row}.float" for v in ("mini-fcn-alex", "mini-fr-zf-07")),
        )
        for shard in ("0000", "0001")
    }
    for victim in ("mini-fcn-alex", "mini-fr-zf-07"):
        assert f"{victim}: 1 of 5 cells to compute: {row} (float)\n" in log(run, "predict", "small/mini-test/0001")
    new = scores(run, "small")
    assert {key: new[key] for key in old} == old and set(new) - set(old) == {
        ("mini-fcn-alex", row), ("mini-fr-zf-07", row)
    }  # fmt: skip
    # the other table shares the sums, but nothing of it has changed
    code, text = snakemake(workflow, run, "--dry-run", "other", overlay=overlay)
    assert "Nothing to be done" in text, text


@pytest.mark.slow
def test_a_new_column_computes_its_own_cells(workflow, run):
    before, old = contents(run), scores(run, "small")
    victim = "mini-fcn-alex-star"
    overlay = changed(victims=[*TINY["tables"]["small"]["victims"], victim])
    code, text = snakemake(workflow, run, "small", overlay=overlay)
    assert code == 0, text
    assert jobs(text) == {"train": 1, "combine": 2, "control": 2, "predict": 2, "score": 1, "tabulate": 1, "small": 1}
    after = contents(run)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {f"resources/weights/{victim}.pt"} | {
        f"results/tiny/mini-test/predictions/{victim}/{row}.float/{shard}.h5"
        for row in ("none", "mini-fcn-alex", SUM, f"{SUM}.permuted-1")
        for shard in ("0000", "0001")
    }
    text = log(run, "predict", "small/mini-test/0000")
    assert f"{victim}: 4 of 4 cells" in text and text.count(": 0 of 4 cells to compute") == 2
    new = scores(run, "small")
    assert {key: new[key] for key in old} == old and Counter(key[0] for key in new)[victim] == 5


@pytest.mark.slow
def test_other_shards_give_the_same_scores(workflow, run):
    old = {table: scores(run, table) for table in ("small", "other")}
    code, text = snakemake(workflow, run, "small", "other", overlay=TINY | {"shard_size": 3})
    assert code == 0, text
    assert jobs(text)["perturb"] == 2 and "train" not in jobs(text)
    assert {table: scores(run, table) for table in ("small", "other")} == old


@pytest.mark.slow
def test_a_job_that_fails_says_why_on_the_terminal(workflow, run):
    """A damaged image: one sentence, with the file; what does not need it is made, and what comes after that."""
    shutil.rmtree(run / "results")
    image = run / "resources" / "mini" / "test" / "JPEGImages" / "001003.jpg"
    image.write_bytes(image.read_bytes()[:300])
    base = "results/tiny/mini-test/perturbations/mini-fcn-alex"
    code, text = snakemake(workflow, run, f"{base}/0001.h5", f"{base}.permuted-1/0000.h5", overlay=TINY)
    assert code == 1 and "Traceback" not in log(run, "perturb", "mini-test/mini-fcn-alex/0001")
    assert (run / base / "0000.h5").exists() and (run / f"{base}.permuted-1" / "0000.h5").exists()
    assert not (run / base / "0001.h5").exists()
    assert "Error: resources/mini/test/JPEGImages/001003.jpg: damaged image" in text
    # and at the end, what to do about it
    (advice,) = re.findall(r"^Jobs have failed; .*$", text, re.MULTILINE)
    assert "start the same command again" in advice and advice.endswith("--config 'given_up=[mini-test/0001]'")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    """A wrong bit in an array, which the header does not show."""
    import h5py

    with h5py.File(path) as file:
        first, _ = encoding.place(file["001001"])
    content = bytearray(path.read_bytes())
    content[first] ^= 8
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink])
@pytest.mark.parametrize("of", ["predictions/mini-fr-zf-07/none.float", "perturbations/mini-fr-zf-07"])
def test_the_advice_on_a_damaged_shard_works_when_it_is_followed(workflow, run, damage, of):
    old = scores(run, "small")
    shard = f"results/tiny/mini-test/{of}/0000.h5"
    damage(run / shard)
    for made in ("scores", "tables"):
        shutil.rmtree(run / "results/tiny" / made)
    is_cell = "predictions" in of
    if not is_cell:  # its cells are wanted anew
        (run / "results/tiny/cells/small/mini-test/0000.json").unlink()
    code, text = snakemake(workflow, run, "small", "other", overlay=TINY)
    if is_cell:
        errors = re.findall(r"^ *Error: (.*)$", text, re.MULTILINE)  # of both tables
        assert code == 1 and errors and not (run / shard).exists(), text
        for error in errors:
            assert re.fullmatch(
                rf"{shard}: .*; deleted {shard}, results/tiny/cells/(small|other)/mini-test/0000.json: "
                "run the workflow again, which computes it",
                error,
            )
    elif damage != Path.unlink:
        assert code == 1 and re.search(rf"Error: {shard}: .*; delete it and run the workflow again", text), text
        (run / shard).unlink()
    if code:
        code, text = snakemake(workflow, run, "small", "other", overlay=TINY)
    assert code == 0 and scores(run, "small") == old, text


@pytest.mark.slow
def test_tables_without_a_shard_say_which_images_are_missing(workflow, run):
    """In the form in which the advice gives it; figures and the other tables lack the shard as well."""
    before = contents(run)
    given_up = ("--config", "given_up=[mini-test/0001]")
    about = [f"results/tiny/tables/{name}.csv" for name in ("statuses", "perceptibility", "self_tests", "claims")]
    code, text = snakemake(workflow, run, "small", "results/tiny/index.html", *about, *given_up, overlay=TINY)
    assert code == 0, text
    assert not {"perturb", "combine", "predict"} & set(jobs(text)) and contents(run) == before
    table = pd.read_csv(run / "results/tiny/tables/small.csv", dtype={"missing": str})
    assert set(table.images) == {2} and set(table.missing) == {"001003"}
    for kind in ("md", "tex"):
        printed = (run / f"results/tiny/tables/small.{kind}").read_text()
        assert "2 of 3 images of mini-test, missing: 001003." in printed
    assert set(pd.read_csv(run / about[0]).images) == {2}
    for path in about:
        assert set(pd.read_csv(run / path, dtype={"missing": str}).missing) == {"001003"}
        assert re.search(r"missing: 001003\.$", (run / path).with_suffix(".md").read_text(), re.MULTILINE)
    page = (run / "results/tiny/index.html").read_text()
    assert "the shards mini-test/0001 would change: they were given up." in page and "(1 more given up)" in page
    # to ask for all again is enough
    code, text = snakemake(workflow, run, "small", overlay=TINY)
    assert code == 0 and jobs(text) == {"check_images": 3, "score": 1, "tabulate": 1, "small": 1}, text
    table = pd.read_csv(run / "results/tiny/tables/small.csv")
    assert set(table.images) == {3} and table.missing.isna().all()


@pytest.mark.slow
def test_what_an_interrupted_run_has_left_can_be_deleted(workflow, run):
    """By the command of profiles/README.md: the sums and draws, and nothing else."""
    before = contents(run)
    left = [f"results/tiny/mini-test/perturbations/{name}/0000.h5" for name in (SUM, f"{SUM}.permuted-1")]
    code, text = snakemake(workflow, run, *left, "--notemp", overlay=TINY)
    assert code == 0 and set(contents(run)) - set(before) == set(left), text
    code, text = snakemake(workflow, run, "small", "other", "--delete-temp-output", overlay=TINY)
    assert code == 0 and contents(run) == before, text


@pytest.mark.slow
def test_provenance_is_that_of_the_files_and_does_not_change(workflow, run):
    path, target = run / "results/tiny/provenance.json", "results/tiny/provenance.json"
    code, text = snakemake(workflow, run, target, overlay=TINY)
    assert code == 0 and not {"perturb", "combine", "predict"} & set(jobs(text)), text
    found = json.loads(path.read_text())
    wanted = merge(configuration(), TINY) | {"kind": "miniature"}  # found out where the configuration leaves it open
    # `networks` is without what is null
    assert {key: found["configuration"][key] for key in wanted if key != "networks"} == {
        key: value for key, value in wanted.items() if key != "networks"
    }
    assert found["project"]["code"] == digests.package_digest(workflow)

    def digest(file: str) -> str:
        return subprocess.run(["sha256sum", run / file], capture_output=True, text=True, check=True).stdout.split()[0]

    assert {name: entry["weights"] for name, entry in found["networks"].items()} == {
        name: {"state_dict": digest(f"resources/weights/{name}.pt")} for name in ("mini-fcn-alex", "mini-fr-zf-07")
    }
    assert {name: set(entry["files"]) for name, entry in found["products"].items()} == {
        name: {f"{name}.{kind}" for kind in ("csv", "md", "tex", "svg", "png")} for name in ("small", "other")
    } | {"about": {"claims.csv", "perceptibility.csv", "self_tests.csv", "statuses.csv"}}
    for entry in found["products"].values():
        assert entry["files"] == {file: digest(f"results/tiny/tables/{file}") for file in entry["files"]}
    ids = "".join(f"{name}\n" for name in ("001001", "001002", "001003"))
    folder = run / "results/tiny/mini-test/perturbations/mini-fcn-alex"
    read = [store.read_header(folder / f"{shard}.h5")["contents"]["image"] for shard in ("0000", "0001")]
    assert found["image_sets"] == {
        "mini-test": {
            "images": 3,
            "sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "contents": store.key(sorted(read)),
        }
    }
    assert [(entry["kind"], entry["of"], entry["shards"]) for entry in found["shards"]] == [
        ("perturbations", "mini-fcn-alex", 2), ("perturbations", "mini-fr-zf-07", 2),
        ("predictions", "mini-fcn-alex", 8), ("predictions", "mini-fr-zf-07", 10),
    ]  # fmt: skip
    # nothing changes when nothing has changed
    code, text = snakemake(workflow, run, target, overlay=TINY)
    assert code == 0 and "Nothing to be done" in text, text
    # and what is written anew is the same
    code, text = snakemake(workflow, run, target, "--forcerun", "write_provenance", overlay=TINY)
    assert code == 0 and jobs(text) == {"write_provenance": 1}, text
    assert json.loads(path.read_text()) == found


@pytest.mark.slow
def test_examples_and_shapes_of_a_finished_run(workflow, run):
    examples = {"image_set": "mini-test", "images": 1, "choose": "clean", "pixels": ["float"]}
    victims = ["mini-fcn-alex", "mini-fr-zf-07"]
    shaped = {"network": "mini-fcn-alex", "noise": [36, 45], "shapes": {"square": "cat"}}
    overlay = merge(TINY, {"figures": {
        "figure1": examples | {"panels": [{"perturbation": SUM, "victims": victims}]},
        "figure2": shaped | {"image_set": "mini-test", "images": ["001002"], "attack": {"iterations": 2}},
    }})  # fmt: skip
    before = contents(run)
    code, text = snakemake(workflow, run, "figure1", "figure2", overlay=overlay)
    assert code == 0, text
    assert jobs(text).items() >= {"shape": 1, "plot_shapes": 1, "plot_examples": 1, "predict": 2}.items()
    assert "perturb" not in jobs(text)
    after = contents(run)
    assert set(after) - set(before) == {"results/tiny/shapes/figure2.h5"}  # the cells were there
    numbers = pd.read_csv(run / "results/tiny/figures/figure2.csv", dtype={"start": str})
    # the three default shapes: mappings are merged
    assert set(zip(numbers.start, numbers["shape"], strict=True)) == {
        (start, shape) for start in ("001002", "noise") for shape in ("circle", "square", "strips")
    }
    assert (numbers.iterations <= 2).all() and numbers.reached.between(0, 1).all()
    assert numbers["class"][numbers["shape"] == "square"].eq("cat").all()
    for name in ("figure1", "figure2"):
        for kind in ("svg", "png"):
            assert (run / f"results/tiny/figures/{name}.{kind}").stat().st_size > 10_000


@pytest.mark.slow
def test_two_runs_in_one_folder_and_control_c(workflow, run, interruptible):
    """The second run is refused; Control-C ends the first, and what comes after it is as if nothing had happened."""
    name, log_file = "resources/weights/mini-fcn-alex-star.pt", run / "logs/train/mini-fcn-alex-star.txt"
    endless = merge(TINY, {"networks": {"mini-fcn-alex-star": {"training": {"iterations": 1_000_000}}}})
    with started(workflow, run, name, overlay=endless) as first:
        deadline = time.monotonic() + 60
        while not log_file.exists() and time.monotonic() < deadline:
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        code, text = snakemake(workflow, run, name, overlay=endless)
        assert code == 1 and "LockException" in text and "--unlock" in text, text
        assert first.poll() is None
        os.killpg(first.pid, signal.SIGINT)
        text = first.communicate(timeout=60)[0]
    assert first.returncode != 0, text
    assert log_file.read_text().splitlines()[-1].startswith("Stopped by SIGINT; what is finished is kept")
    assert not list((run / "resources/weights").glob("mini-fcn-alex-star*"))
    code, text = snakemake(workflow, run, name, overlay=TINY)
    assert code == 0 and (run / name).exists(), text


# What makes Snakemake run a job again

# what is downloaded is checked
WITHOUT_CODE = {"data/download", "data/extract", "data/unpack_voc", "data/unpack_sbd"}


def rules() -> dict[str, str]:
    """Text of every rule by its script."""
    text = "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    return {
        match[2]: match[1] for match in re.finditer(r"^(rule \w+:.*?\.\./scripts/(\w+/\w+)\.py\")", text, re.M | re.S)
    }


@pytest.mark.parametrize("script", sorted(set(rules()) - WITHOUT_CODE))
def test_the_digest_of_a_rule_covers_what_its_script_runs(script):
    """Snakemake does not look at imported modules: a rule digests its script and all that it imports."""
    assert f'code=code("scripts/{script}.py")' in rules()[script]


def test_every_script_has_a_rule():
    scripts = ROOT / "scripts"
    assert set(rules()) == {str(path.relative_to(scripts).with_suffix("")) for path in scripts.rglob("*.py")}


def test_a_script_stands_in_the_room_of_its_rule():
    for path in (ROOT / "rules").glob("*.smk"):
        assert set(re.findall(r"\.\./scripts/(\w+)/", path.read_text())) <= {path.stem}


# Perturbations as files


@pytest.mark.slow
def test_what_is_exported_comes_back_with_the_same_scores(workflow, run):
    names = {"own": "mini-fcn-alex", "sum": SUM, "control": f"{SUM}.permuted-1"}
    overlay = TINY | {"export": {"mini-test": list(names.values())}}
    code, text = snakemake(workflow, run, "export", overlay=overlay)
    assert code == 0 and jobs(text)["export_perturbation"] == 3, text
    folder = run / "results/tiny/export/mini-test"
    for name in names.values():
        index = pd.read_csv(folder / name / "index.csv", dtype=str)
        assert list(index.id) == [image_id for image_id in ("001001", "001002", "001003") for _ in range(2)]
        for row in index.itertuples():
            assert hashlib.sha256((folder / name / row.file).read_bytes()).hexdigest() == row.sha256
            assert row.shape == ("96 x 128 x 3" if row.file.endswith(".png") else "3 x 96 x 128")

    # another person's folder
    shutil.move(folder, run / "theirs")
    variants = {
        name: {"perturbation": f"theirs/{exported}/perturbations", "unclipped": True}
        for name, exported in names.items()
    }
    variants["pictures"] = {"perturbation": "theirs/mini-fcn-alex/images"}
    rows = ["none", names["own"], names["sum"], f"{SUM}.permuted", *(f"mini-fcn-alex@{name}" for name in variants)]
    overlay = changed(perturbations=rows) | {"variants": variants, "pixels": ["float", "8-bit"]}
    code, text = snakemake(workflow, run, "small", overlay=overlay)
    assert code == 0, text
    found = json.loads((run / "results/tiny/scores/small.json").read_text())
    scored = {(one["victim"], cell["pixels"], cell["perturbation"]): cell for one in found for cell in one["cells"]}
    same = ("score", "companion", "per_class", "perceptibility", "linf", "drop_se")
    for victim, pixels, name in list(scored):
        variant = name.partition("@")[2]
        if variant:
            original = scored[victim, "8-bit" if variant == "pictures" else pixels, names.get(variant, names["own"])]
            for key in same[:3] if variant == "pictures" else same:
                # of the same array in another order in memory the last bit of a mean may differ
                expected = pytest.approx(original[key], rel=1e-12) if key == "perceptibility" else original[key]
                assert scored[victim, pixels, name][key] == expected, (victim, name, key)

    # nothing changes without a changed file, which concerns its shard alone
    code, text = snakemake(workflow, run, "--dry-run", "small", overlay=overlay)
    assert "Nothing to be done" in text, text
    file = run / "theirs/mini-fcn-alex/perturbations/001003.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    code, text = snakemake(workflow, run, "--dry-run", "small", overlay=overlay)
    assert [file for file in outputs(text) if "/perturbations/" in file and "+" not in file] == [
        "results/tiny/mini-test/perturbations/mini-fcn-alex@own/0001.h5"
    ]
    file.unlink()
    code, text = snakemake(workflow, run, "small", overlay=overlay)
    said = log(run, "perturb", "mini-test/mini-fcn-alex@own/0001")
    assert code == 1 and "theirs/mini-fcn-alex/perturbations: there is neither 001003.npy nor 001003.png" in said


def test_an_empty_export_says_how(workflow, tmp_path):
    code, text = snakemake(workflow, tmp_path, "--dry-run", "export", overlay=TINY)
    assert code == 1 and "export names nothing; say what: --config 'export={mini-test: [mini-fcn-vgg]}'" in text, text
