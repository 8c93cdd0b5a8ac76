"""Provenance of the results: code, configuration, weights, images and packages, collected from the shards themselves.

The header of a shard has everything that determined it, and any change of it makes the shard stale, so the collected
values hold for every number.  Nothing depends on the time or on the order of work.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import dag
from dag.data import image_sets
from dag.evaluate.cells import read_manifest
from dag.workflow import files, store

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "h5py", "pillow", "pandas", "matplotlib", "seaborn", "snakemake")


def provenance(
    configuration: Mapping,
    code: str,
    sources: Iterable[Path],
    products: Mapping[str, Mapping[str, Sequence[Path]]],
) -> dict:
    """All that made the results of an experiment.

    Parameters
    ----------
    configuration : mapping
        Of the experiment, complete.
    code : str
        Digest of the package, see `dag.workflow.digests.package_digest`.
    sources : iterable of Path
        Shards of the perturbations of sources.
    products : mapping
        {name of a table or figure: {"manifests": of its cells, "files": what it consists of, and for shaped
        examples "shapes": their shards}}.

    Returns
    -------
    dict
        experiment; project (version, commit, clean, code; commit and clean as of `checkout`); networks (by name:
        architecture, arguments, digest of its code, SHA-256 of its weights by role); image_sets (by name: number of
        images that were used, `dag.data.image_sets.digest` of their ids, digest of the contents of their files);
        shards (per source or victim, and image set: how many, the digest of their keys, the code and the versions of
        packages that made them); products (by name: digest of the keys of its cells, SHA-256 of its files); packages
        (versions, where this was gathered); configuration.

    Raises
    ------
    ValueError
        If a shard cannot be read, or two shards are of different networks of one name.
    """
    networks: dict[str, dict] = {}
    listed: dict[str, set] = {}
    contents: dict[str, set] = {}
    groups: dict[tuple, list[dict]] = {}

    def note(path: Path, kind: str) -> str:
        header = store.read_header(path, kind)
        entry = header["network"] | {"weights": header["weights"]}
        network, images = entry["name"], header["image_set"]["name"]
        if networks.setdefault(network, entry) != entry:
            raise ValueError(
                f"{path}: made by another network {network}, or with other weights, than the shards before it; "
                "run the workflow again to bring all up to date"
            )
        listed.setdefault(images, set()).update(header.get("images", header["ids"]))
        contents.setdefault(images, set()).add(header["contents"]["image"])
        groups.setdefault((kind, header.get("source", network), images), []).append(header)
        return header["key"]

    for path in sources:
        note(path, "perturbations")
    noted: dict[Path, str] = {}
    made = {}
    for name, entry in products.items():
        cells = {path for manifest in entry["manifests"] for path in read_manifest(manifest).values()}
        for path in entry.get("shapes", []):
            note(path, "shapes")
        noted |= {path: note(path, "predictions") for path in sorted(cells - noted.keys())}
        digests = {Path(path).name: files.file_digest(path) for path in entry["files"]}
        made[name] = {"cells": store.key(sorted(noted[path] for path in cells)), "files": digests}
    shards = [
        {
            "kind": kind,
            "of": name,
            "image_set": image_set,
            "shards": len(headers),
            "keys": store.key(sorted(header["key"] for header in headers)),
            "code": sorted({header["code"] for header in headers}),
            "versions": _distinct(header["versions"] for header in headers),
        }
        for (kind, name, image_set), headers in groups.items()
    ]
    return {
        "experiment": configuration["experiment"],
        "project": {"version": dag.__version__, "code": code} | checkout(Path(__file__).parents[2]),
        "networks": networks,
        "image_sets": {
            name: {
                "images": len(ids),
                "sha256": image_sets.digest(ids),
                "contents": store.key(sorted(contents[name])),
            }
            for name, ids in listed.items()
        },
        "shards": shards,
        "products": made,
        "packages": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "configuration": dict(configuration),
    }


def checkout(root: Path) -> dict:
    """Commit of the folder that holds the project, and whether its code is as committed; None where git does not know.

    What is not under the project's control, such as an overlay of the configuration, does not count as a change.
    """
    try:
        _git(root, "ls-files", "--error-unmatch", "Snakefile")  # not merely inside another repository
        commit = _git(root, "rev-parse", "HEAD").strip()
        changes = _git(root, "status", "--porcelain", "--", "Snakefile", "rules", "scripts", "dag")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "clean": None}
    return {"commit": commit, "clean": not changes}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _distinct(mappings: Iterable[dict]) -> list[dict]:
    return [dict(items) for items in sorted({tuple(sorted(mapping.items())) for mapping in mappings})]
