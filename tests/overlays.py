"""Configurations as Snakemake merges them, for the tests."""

import copy

from snakemake.utils import update_config


def merge(base: dict, overlay: dict) -> dict:
    """The configuration that Snakemake makes of `base` and an overlay; neither is changed."""
    merged = copy.deepcopy(base)
    update_config(merged, overlay)
    return merged
