"""NumPy archives: the layout of tike's test data (also bzip2-compressed), and PtychoNN's training archives."""

from __future__ import annotations

import bz2
import io
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fftshift
from ptycho_bluesky.io.assemble import RawScan, StatedGeometry, scaled_probe
from ptycho_bluesky.io.units import real_numbers

__all__ = ["read_npz"]

TIKE_KEYS = {"data", "scan"}
PTYCHONN_KEYS = {"reciprocal"}


def read_npz(path: Path, limit: int | None = None) -> RawScan:
    """Read an archive of either layout.

    Parameters
    ----------
    path : Path
        ``.npz``, or ``.npz.bz2``.
    limit : int, optional
        Frames to read at most.

    Returns
    -------
    RawScan
        tike: ``data`` (1, n, N, N) with the zero frequency at ``[0, 0]``, ``scan`` (1, n, 2) in object pixels (row,
        column) of the window's corner, ``probe`` (…, N, N). PtychoNN: ``reciprocal`` (n, N, N) with the zero frequency
        at the centre, ``position`` (n, 2) in m (y, x), ``pixelsize`` in m; ``real``, its labels, is left out.

    Raises
    ------
    InputError
        The file is missing, is no NumPy archive, holds pickled objects or lacks an array.
    """
    try:
        with _opened(path) as stream, np.load(stream, allow_pickle=False) as archive:
            names = set(archive.files)
            if names >= TIKE_KEYS:
                return _read_tike(archive, limit)
            if names >= PTYCHONN_KEYS:
                return _read_ptychonn(archive, limit)
    except FileNotFoundError as error:
        raise InputError(f"file {path}", "it does not exist", "check the path") from error
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: {error}", "it must be a NumPy .npz archive without pickled objects", "check that it is complete"
        ) from error
    raise InputError(
        f"{path} with arrays {sorted(names)}",
        "known layouts have 'data' and 'scan' (tike) or 'reciprocal' and 'position' (PtychoNN)",
        "convert the file",
    )


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".bz2":
        with bz2.open(path) as stream:
            # np.load seeks back and forth, which a compressed stream answers by decompressing from the start.
            return io.BytesIO(stream.read())
    return path.open("rb")


def _stack(array: NDArray[Any], item_ndim: int, what: str) -> NDArray[Any]:
    """Drop leading axes of length one, so that one axis of frames remains."""
    while array.ndim > item_ndim + 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != item_ndim + 1:
        raise InputError(f"{what} of shape {array.shape}", "it has one axis of frames")
    return array


def _limited(array: NDArray[Any], limit: int | None) -> NDArray[Any]:
    return array if limit is None else array[:limit]


def _read_tike(archive: Any, limit: int | None) -> RawScan:
    image = fftshift(_limited(_stack(archive["data"], 2, "'data'"), limit))
    corner_px = real_numbers(_limited(_stack(archive["scan"], 1, "'scan'"), limit), "'scan'")
    probe = scaled_probe(archive["probe"], image) if "probe" in archive.files else None
    # The corner of a window lies N//2 pixels above and left of the probe's centre.
    position = corner_px + image.shape[-1] // 2
    return RawScan(image, position, "px", probe=probe, metadata={"format": "tike npz"})


def _read_ptychonn(archive: Any, limit: int | None) -> RawScan:
    if "position" not in archive.files:
        raise InputError("an archive with 'reciprocal' and without 'position'", "every frame has a position")
    image = _limited(_stack(archive["reciprocal"], 2, "'reciprocal'"), limit)
    position = _limited(_stack(archive["position"], 1, "'position'"), limit)
    stated = StatedGeometry()
    if "pixelsize" in archive.files:
        pixel_m = real_numbers(archive["pixelsize"], "'pixelsize'").ravel()
        if not pixel_m.size:
            raise InputError("an empty 'pixelsize'", "it is the object's pixel in m", "check the archive")
        stated = StatedGeometry(object_pixel_m=float(pixel_m[0]))
    return RawScan(image, real_numbers(position, "'position'"), "m", stated=stated, metadata={"format": "PtychoNN npz"})
