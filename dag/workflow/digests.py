"""Digests of the code behind a job: what makes a result stale when the project changes.

Snakemake's own trigger checks the time stamp of a script, which every clone renews, and ignores the modules that the
script imports.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

# Modules that only move arrays and messages: a change in them makes no result stale.  A change of the content of
# shards must change `store.FORMAT`, which is part of every shard.
WITHOUT_NUMBERS = frozenset(
    f"dag.workflow.{name}" for name in ("contents", "encoding", "files", "lock", "overlap", "startup", "store")
)


def code_digest(root: Path, *code: str) -> str:
    """Digest of the given code and of every module of the project that it imports.

    It is computed from the syntax trees without docstrings and messages of exceptions, so that edits of comments,
    layout or messages make no result stale.  `WITHOUT_NUMBERS` is left out.

    Parameters
    ----------
    root : Path
        Folder that holds the package and the scripts.
    code : str
        A script ("scripts/attack/perturb.py", from `root` or from the working directory), a module
        ("dag.attack.perturb") or a function ("dag.networks.mini.fcn:fcn").  An installed package is left out: its
        version is recorded instead.
    """
    pending, found = list(code), {}
    while pending:
        module = pending.pop().partition(":")[0]
        path = root / (module if module.endswith(".py") else module.replace(".", "/") + ".py")
        if module.endswith(".py") and not path.is_file():
            path = Path(module)
        if module in found or module in WITHOUT_NUMBERS or not path.is_file():
            continue
        found[module], imported = outline(path)
        pending += imported
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()[:16]


def text_digest(text: str) -> str:
    """Digest of a text, short enough for the name of a file."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def package_digest(root: Path) -> str:
    """Digest of all modules of the package in `root` but `WITHOUT_NUMBERS`, see `code_digest`."""
    files = [path.relative_to(root).with_suffix("") for path in sorted((root / "dag").rglob("*.py"))]
    return code_digest(root, *(".".join(file.parts) for file in files))


@cache
def outline(path: Path) -> tuple[str, tuple[str, ...]]:
    """The code of a file as normalised text, and the modules of the project that it imports."""
    tree = ast.parse(path.read_text())
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dag":
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names if alias.name.split(".")[0] == "dag"]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
    return ast.unparse(tree), tuple(imported)
