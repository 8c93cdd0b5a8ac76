"""The files that describe the project say the same, the environment is the one they describe, and the
modules of the package import each other in one direction only."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dag

ROOT = Path(__file__).parents[2]

# Direct requirements that conda-forge knows by another name.
CONDA_FORGE_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "seaborn": "seaborn-base",
    "opencv-python-headless": "py-opencv",
}
# Installs the others; conda does this itself.
NOT_IN_CONDA = {"uv"}


# Requirements


def requirements_in() -> list[Requirement]:
    lines = (ROOT / "requirements.in").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def lock() -> list[tuple[Requirement, list[str]]]:
    """Every entry of requirements.lock with its SHA-256 hashes."""
    entries = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    split = [re.split(r"\s+--hash=", entry.strip()) for entry in entries]
    return [(Requirement(first), hashes) for first, *hashes in split]


def locked(python: str | None = None, platform: str | None = None) -> dict[str, str]:
    """Version of every package of the lock that an environment needs; default: the running one."""
    environment = default_environment()
    if python:
        environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    if platform:
        environment |= {"sys_platform": platform}
    needed = [r for r, _ in lock() if r.marker is None or r.marker.evaluate(environment)]
    names = [canonicalize_name(r.name) for r in needed]
    assert len(names) == len(set(names)), "a package is pinned twice for one environment"
    return {name: str(r.specifier).removeprefix("==") for name, r in zip(names, needed, strict=True)}


def test_lock_pins_every_package_with_hashes():
    for requirement, hashes in lock():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), f"{requirement} is not pinned"
        assert requirement.url is None, f"{requirement} is an address"
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), f"{requirement} has a malformed hash"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_lock_satisfies_the_requirements(python, platform):
    pins = locked(python, platform)
    for requirement in requirements_in():
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in requirements.lock; run make lock"
        assert requirement.specifier.contains(pin), f"requirements.lock has {pin} for {requirement}; run make lock"


def test_installed_packages_are_the_locked_ones():
    different = []
    for name, pin in locked().items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "not installed"
        if installed.partition("+")[0] != pin:  # a local version, +cpu, is the same release
            different.append(f"{name}: {installed}, locked is {pin}")
    assert not different, "the environment differs from requirements.lock (make test repairs it):\n" + "\n".join(
        different
    )


def test_environment_yml_pins_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    conda = dict(entry.split("=") for entry in environment["dependencies"] if isinstance(entry, str) and "=" in entry)
    pins = locked(conda.pop("python"), "linux")
    found = conda | dict(entry.split("==") for entry in pip)
    expected = {}
    for requirement in requirements_in():
        if requirement.name not in NOT_IN_CONDA:
            expected[CONDA_FORGE_NAMES.get(requirement.name, requirement.name)] = pins[
                canonicalize_name(requirement.name)
            ]
    # the wheel's version has a fourth number, its own
    expected["py-opencv"] = ".".join(expected["py-opencv"].split(".")[:3])
    assert found == expected


def test_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == dag.__version__
    assert f"## {dag.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert project["requires-python"] == ">=3.11"


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2].partition("\n## ")[0]
    files = re.findall(r"`((?:dag|config|rules|scripts|report|tests)/[\w./]+)`", text)
    assert len(files) > 15 and [file for file in files if not (ROOT / file).exists()] == []
    for line in re.findall(r"^ {4}(\S+)", text, re.M):
        assert (ROOT / line.replace("STAGE", "report")).exists(), line
    for name, file in re.findall(r"`(\w+)` in `([\w./]+)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), f"{file} does not have {name}"


def test_a_dry_run_needs_nothing_of_what_make_leaves_out(tmp_path):
    """`make all ARGS=-n` installs the lock without these packages; here they cannot be imported."""
    makefile = (ROOT / "Makefile").read_text()
    left_out = re.search(r"sed '/\^\\\((.*?)\\\)/", makefile)[1].split("\\|")
    assert {"torch", "nvidia"} < set(left_out)
    code = f"""
import sys
from snakemake.cli import main

class Left:
    def find_spec(self, name, *_):
        if name.replace("cv2", "opencv").startswith({tuple(left_out)}):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Left())
main(["-s", r"{ROOT}/Snakefile", "-n", "--quiet", "all", "--workflow-profile", r"{ROOT}/profiles/default", "--", "all"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for arguments, stamp in (("--dry-run", "planning"), ("-n", "planning"), ("", "requirements")):
        command = ["make", "-n", "all", f"ARGS={arguments}", f"VENV={tmp_path}/venv", "-f", ROOT / "Makefile"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"touch {tmp_path}/venv/{stamp}.stamp" in said
    # an environment that has everything stays as it is
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/uv.lock").touch()
    (tmp_path / "venv/requirements.stamp").touch()
    command[3] = "ARGS=-n"
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "touch" not in said and "all -n" in said


# No address of a package registry: everybody's own configuration names it.  In pieces, so that this file may stay.
REGISTRY_HOSTS = [".".join(parts) for parts in [("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org")]]
REGISTRY_OPTIONS = ["--" + option for option in ("index-url", "extra-index-url", "find-links", "trusted-host")]


def project_files() -> list[Path]:
    folders = ["dag", "scripts", "rules", "config", "profiles", "report", "tests", "benchmarks", "docs", ".ci"]
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*"))] + sorted(ROOT.glob("*"))
    return [file for file in files if file.is_file() and "__pycache__" not in file.parts]


def test_no_registry_is_named():
    for file in project_files():
        text = file.read_bytes().decode(errors="replace")
        for word in REGISTRY_HOSTS + ([] if file == Path(__file__) else REGISTRY_OPTIONS):
            assert word not in text, f"{file.relative_to(ROOT)} names {word}"
    assert "://" not in (ROOT / "requirements.lock").read_text()


# Who may import whom.  A module of the package imports from lower rows only, see docs/design.md.

# Rooms from the ground up: a module imports from its own room and from those before it.
ROOMS = ["data", "workflow", "networks", "attack", "evaluate", "report"]
# Most jobs and the planning start without torch, whose import takes seconds.
NEEDS_TORCH = re.compile(
    r"networks|attack\.(adv_lib|diversity|engine|ensemble|methods|objectives|targets|own|perturb|planted|shapes|single)|evaluate\.predict"
)
# Pure functions: these open neither images nor results.
NO_IMAGE_OR_RESULT_FILES = re.compile(
    r"networks(?!\.caffe\.(training|compare))|attack\.(engine|rules|targets|arithmetic)"
)


# A job of these stages also builds the network that it runs, chooses images by their scores, or reads cells.
OTHER_ROOMS = {
    "attack/perturb": {"networks"},
    "attack/plant": {"networks"},
    "attack/shape": {"networks"},
    "evaluate/compare_networks": {"networks"},
    "evaluate/predict": {"networks"},
    "report/draw_gallery": {"evaluate"},
    "report/plot_examples": {"evaluate"},
    "report/write_provenance": {"evaluate"},
}


# A name of the package as texts write it.
NAMED = re.compile(r"`(dag\.[\w.]+)`")


def modules() -> dict[str, Path]:
    """Name below `dag` -> file; "" is the package itself."""
    files = sorted((ROOT / "dag").rglob("*.py"))
    return {
        ".".join(f.relative_to(ROOT / "dag").with_suffix("").parts).removesuffix("__init__").rstrip("."): f
        for f in files
    }


def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(imported: str) -> str | None:
    """Module below `dag` that an imported name belongs to; None if it is not of the package."""
    package, _, name = imported.partition(".")
    if package != "dag":
        return None
    while name not in modules():
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("module", [name for name in modules() if "." in name])
def test_rooms_import_downwards(module):
    room = module.partition(".")[0]
    for imported in imports(modules()[module]):
        third_party, target = imported.partition(".")[0], inside(imported)
        allowed = {"torchvision"} if module == "networks.torchvision_models" else set()
        assert third_party not in {"torchvision", "snakemake", "scripts"} - allowed, f"dag.{module} imports {imported}"
        if not NEEDS_TORCH.match(module):
            assert third_party not in {"torch", "torchmetrics"} or module == "workflow.startup", f"dag.{module}"
        if NO_IMAGE_OR_RESULT_FILES.match(module):
            files = third_party in {"PIL", "h5py", "cv2"} - ({"PIL"} if module == "attack.arithmetic" else set())
            assert not files and target != "workflow.store", f"dag.{module} imports {imported}"
        if target:
            above = ROOMS.index(room) < ROOMS.index(target.partition(".")[0])
            assert not above, f"dag.{module} imports dag.{target}, which is not below it"


def test_no_modules_import_each_other():
    """`graphlib` refuses a circle, and names it."""
    graph = {name: {inside(found) for found in imports(file)} - {None, name} for name, file in modules().items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert len(order) == len(graph)


def test_names_of_the_package_in_texts_exist():
    """`dag.module.name` in documents and docstrings, imports and files in documents."""
    documents = {*ROOT.glob("*.md"), *ROOT.glob("*/*.md")} - {ROOT / "CHANGELOG.md"}
    names = {name: file for file in [*documents, *modules().values()] for name in NAMED.findall(file.read_text())}
    shown = {file: re.findall(r"from (dag[\w.]*) import (\w+)", file.read_text()) for file in documents}
    names |= {".".join(pair): file for file, pairs in shown.items() for pair in pairs}
    for file in documents:
        paths = re.findall(r"`((?:dag|config|rules|scripts|report|tests|docs|benchmarks)/[\w./*]+)`", file.read_text())
        assert [path for path in paths if not any(ROOT.glob(path))] == [], file
    assert len(names) > 30
    for name, file in names.items():
        module = f"dag.{inside(name)}".rstrip(".")
        parts = name.removeprefix(module).strip(".").split(".")
        value = importlib.import_module(module) if parts[0] else None
        for part in filter(None, parts):
            assert hasattr(value, part), f"{file.relative_to(ROOT)} names {name}, which does not exist"
            value = getattr(value, part)


@pytest.mark.parametrize("room", ROOMS[:1] + ROOMS[2:])
def test_a_script_imports_its_own_room_and_what_jobs_share(room):
    """And the images, which every stage reads."""
    for file in (ROOT / "scripts" / room).glob("*.py"):
        rooms = {inside(found).partition(".")[0] for found in imports(file) if found.startswith("dag.")}
        assert rooms <= {room, "workflow", "data"} | OTHER_ROOMS.get(f"{room}/{file.stem}", set()), file


def test_the_package_itself_imports_nothing_before_it_is_needed():
    code = "import sys, dag; sys.exit(' '.join(name for name in sys.modules if name.startswith('dag.')) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"import dag also imports {done.stderr}"


def test_nothing_drags_torch_in():
    names = [f"dag.{name}" for name in modules() if name and not NEEDS_TORCH.match(name)]
    code = f"import sys, {', '.join(names)}; sys.exit(' '.join({{'torch', 'torchvision'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing {', '.join(names)} also imports {done.stderr}"
