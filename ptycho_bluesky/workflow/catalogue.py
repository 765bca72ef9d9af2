"""Long containers of Tiled, read page by page with no more of each entry than is asked for.

A run's metadata holds its whole planned trajectory. Looking through ten thousand runs for those that are not yet
decided on would carry all of it over the network and keep it in memory; Tiled selects on its side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["select_metadata"]

PAGE = 300
"""Entries of a page: the most that Tiled gives."""


def select_metadata(
    container: Any,
    expression: str,
    since: tuple[str, float] | None = None,
    equal: tuple[str, str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Part of the metadata of every child of a container.

    Parameters
    ----------
    container : tiled Container
    expression : str
        JMESPath of what is wanted.
    since : tuple of str and float, optional
        Key in the metadata and least value of the entries that are wanted.
    equal : tuple of str, optional
        Key in the metadata and value of the entries that are wanted.

    Yields
    ------
    tuple of str and object
        Key of the entry, and what the expression selects from its metadata.

    Raises
    ------
    httpx.HTTPError
        Tiled does not answer, or refuses.
    """
    params: dict[str, Any] = {
        "fields": "metadata",
        "select_metadata": expression,
        "omit_links": True,
        "page[limit]": PAGE,
    }
    if since is not None:
        params |= {
            "filter[comparison][condition][operator]": "ge",
            "filter[comparison][condition][key]": since[0],
            "filter[comparison][condition][value]": json.dumps(since[1]),
        }
    if equal is not None:
        params |= {"filter[eq][condition][key]": equal[0], "filter[eq][condition][value]": json.dumps(equal[1])}
    url, client = container.item["links"]["search"], container.context.http_client
    offset = 0
    while True:
        reply = client.get(url, params=params | {"page[offset]": offset}, headers={"Accept": "application/json"})
        reply.raise_for_status()
        entries: list[Mapping[str, Any]] = reply.json()["data"]
        for entry in entries:
            yield entry["id"], entry["attributes"]["metadata"]["selected"]
        if len(entries) < PAGE:
            return
        offset += len(entries)
