"""Overlap of reading and computing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def ahead(items: Iterable) -> Iterator:
    """Yield the items; the next one is computed in another thread while the current one is in use."""
    items, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = pool.submit(next, items, end)
            yield item
