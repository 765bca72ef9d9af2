"""The connection to Tiled: refuses in seconds instead of hanging, and says where and why.

Notes
-----
Tiled's client repeats a failed request for up to 75 s, by environment variables that it reads when it is imported.
Everything here that is started by a person or runs for days has its own way of waiting, so `connect` shortens that
(unless the variables are set); it therefore imports the client late.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from ptycho_bluesky.config import TiledSettings
from ptycho_bluesky.errors import InputError, UnreachableError

if TYPE_CHECKING:
    from tiled.client.base import BaseClient
    from tiled.client.container import Container

__all__ = ["connect", "delete_node", "get_child", "get_or_create", "jsonable", "put_array", "reachable"]

RETRY_ENVIRONMENT = {"TILED_RETRY_ATTEMPTS": "4", "TILED_RETRY_TIMEOUT": "10"}
REMEDY = "start it with 'ptycho-bluesky tiled', or set tiled.uri to a server that runs"


@contextlib.contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Turn transport errors inside the block into one that names the server and the remedy.

    Parameters
    ----------
    uri : str
        Address of the server, for the message.

    Raises
    ------
    UnreachableError
        The server does not answer, answers too late, or fails inside (status ≥ 500).
    InputError
        It refuses the key (401, 403).
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise InputError(
                f"Tiled at {uri} refuses the key (status {status})", "", "set tiled.api_key to the server's key"
            ) from error
        if status >= 500:
            raise UnreachableError(
                f"Tiled at {uri} failed with status {status} on {error.request.url.path}",
                "the server must be able to read and write its storage",
                "read its log; is its disk full, does readable_storage name the detector's folder?",
            ) from error
        raise
    except httpx.TransportError as error:
        raise UnreachableError(
            f"Tiled at {uri} does not answer ({error or type(error).__name__})", "", REMEDY
        ) from error


def connect(settings: TiledSettings) -> Container:
    """Connect to the root of a Tiled server.

    Parameters
    ----------
    settings : TiledSettings
        URI, key and timeout.

    Returns
    -------
    tiled Container
        The root node.

    Raises
    ------
    UnreachableError
        Nothing answers at the URI, within ``timeout_s``.
    InputError
        The URI is no address, or the server refuses the key.
    """
    for name, value in RETRY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    timeout = httpx.Timeout(settings.timeout_s)
    key = settings.api_key.get_secret_value()
    base = settings.uri.split("/api/v1", maxsplit=1)[0].rstrip("/")
    try:
        with reachable(settings.uri):
            # One plain request first: the client would repeat it for long before it gives up, and leave sockets behind.
            reply = httpx.get(f"{base}/api/v1/metadata/", timeout=timeout, headers={"Authorization": f"Apikey {key}"})
            reply.raise_for_status()
            from tiled.client import from_uri

            root = from_uri(settings.uri, api_key=key, timeout=timeout, include_data_sources=True)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InputError(f"tiled.uri = {settings.uri!r}", f"{error}", "e.g. http://127.0.0.1:8000") from error
    except httpx.HTTPStatusError as error:
        raise UnreachableError(f"no Tiled server at {settings.uri} ({error})", "", REMEDY) from error
    return root


def get_child(parent: Any, key: str) -> Any | None:
    """Child node of a container by its exact key, or None."""
    from tiled.client.container import Container

    try:
        # A catalogue of runs would go on to look for runs whose uid only begins so.
        return Container.__getitem__(parent, key)
    except KeyError:
        return None


def get_or_create(
    parent: Any, key: str, metadata: Mapping[str, Any] | None = None, specs: list[Any] | None = None
) -> Container:
    """Child container by its exact key; made if there is none, also when another process makes it at the same time."""
    from tiled.client.utils import ClientError

    child = get_child(parent, key)
    if child is not None:
        return child
    try:
        return parent.create_container(key=key, metadata=jsonable(metadata or {}), specs=specs or [])
    except ClientError as error:
        if error.response.status_code != httpx.codes.CONFLICT:
            raise
    child = get_child(parent, key)
    if child is None:
        raise UnreachableError(f"Tiled node {key!r} can neither be made nor found", "", "read the server's log")
    return child


def put_array(parent: Any, key: str, array: Any, metadata: Mapping[str, Any] | None = None) -> BaseClient:
    """Write an array under a key, over what was there; a node of another shape or type is replaced by a new one."""
    array = np.ascontiguousarray(array)
    node = get_child(parent, key)
    if node is not None:
        if getattr(node, "shape", None) == array.shape and getattr(node, "dtype", None) == array.dtype:
            node.write(array)
            if metadata is not None:
                node.replace_metadata(jsonable(metadata), drop_revision=True)
            return node
        # Tiled arrays grow towards larger indices only, so a canvas that grew to the left or top is a new node.
        delete_node(node)
    return parent.write_array(array, key=key, metadata=jsonable(metadata or {}))


def delete_node(node: Any) -> None:
    """Delete a node, all below it and what Tiled itself stores for it; files of detectors stay."""
    node.delete(recursive=True, external_only=False)


def jsonable(value: Any) -> Any:
    """JSON form of metadata: NumPy scalars and arrays, tuples and paths become plain; NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return jsonable(value.value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
