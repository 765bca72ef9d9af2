"""What a server that was killed while it wrote has left on the disk.

Tiled makes an array's folder first and enters it into its catalogue afterwards. A server that dies in between leaves a
folder that no catalogue knows, and from then on refuses to write the array of that name: the run could never be
brought into Tiled again.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

__all__ = ["set_orphans_aside"]

logger = logging.getLogger(__name__)


def set_orphans_aside(storage: Path) -> list[Path]:
    """Move arrays that the catalogue does not know out of the way; call it while no server runs on the folder.

    Parameters
    ----------
    storage : Path
        Folder of the embedded server: ``catalog.db`` beside ``arrays``.

    Returns
    -------
    list of Path
        Where they lie now, below ``storage/orphans``: nothing is deleted.
    """
    catalogue, arrays = storage / "catalog.db", storage / "arrays"
    if not catalogue.exists() or not arrays.is_dir():
        return []
    with closing(sqlite3.connect(catalogue)) as connection:
        try:
            uris = [row[0] for row in connection.execute("SELECT data_uri FROM assets")]
        except sqlite3.OperationalError as error:
            logger.debug("the catalogue lists no assets: %s", error)
            return []
    known = {os.path.realpath(unquote(urlparse(uri).path)) for uri in uris}
    target = storage / "orphans" / time.strftime("%Y%m%dT%H%M%S")
    moved = []
    for folder in _unknown_arrays(arrays, known):
        place = target / folder.relative_to(arrays)
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(place)
        moved.append(place)
    if moved:
        logger.warning("%d arrays of a server that died while it wrote them were moved to %s", len(moved), target)
    return moved


def _unknown_arrays(arrays: Path, known: set[str]) -> list[Path]:
    """Folders of arrays that are in no catalogue, nor part of one that is."""
    found = []
    for name, folders, files in os.walk(arrays):
        if os.path.realpath(name) in known:
            folders.clear()
        elif ".zarray" in files or ("zarr.json" in files and _is_array(Path(name) / "zarr.json")):
            found.append(Path(name))
            folders.clear()
    return found


def _is_array(description: Path) -> bool:
    """Whether a description in Zarr's third format is one of an array; one that was cut short counts as such."""
    try:
        return json.loads(description.read_text()).get("node_type") != "group"
    except ValueError:
        return True
