"""Arrays, tables and geometry as they stand in Tiled's nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.workflow.client import jsonable, put_array

__all__ = ["geometry_content", "geometry_metadata", "put_known", "put_table", "read_table", "write_arrays"]


def put_known(parent: Any, present: Mapping[str, Any], name: str, array: Any) -> None:
    """Write one array, without a request to look for it where it is known to be absent."""
    if name in present:
        put_array(parent, name, array)
    else:
        parent.write_array(np.ascontiguousarray(array), key=name)


def write_arrays(node: Any, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write arrays under a container over those that are there, its metadata last: who sees them finds everything."""
    present = dict(node.items())
    for name, array in arrays.items():
        put_known(node, present, name, array)
    node.replace_metadata(jsonable(metadata), drop_revision=True)


def put_table(parent: Any, present: Mapping[str, Any], name: str, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length as a table, in place of the one that is there."""
    if name in present:
        parent.delete_contents(name, recursive=True, external_only=False)
    if columns:
        parent.write_table({key: np.asarray(values).tolist() for key, values in columns.items()}, key=name)


def read_table(node: Any) -> dict[str, Any]:
    """Columns of a table."""
    frame = node.read()
    return {name: frame[name].to_numpy() for name in frame.columns}


def geometry_metadata(geometry: Geometry | None) -> Any:
    """Geometry as it stands in metadata: never left out, ``unknown`` when it is."""
    return "unknown" if geometry is None else geometry.as_dict()


def geometry_content(content: Any) -> Mapping[str, Any] | None:
    """Inverse of `geometry_metadata`, for `Geometry.from_dict`."""
    return content if isinstance(content, Mapping) else None
