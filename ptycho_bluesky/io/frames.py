"""Frames that stay in their HDF5 file until they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import apply_d4
from ptycho_bluesky.io.hdf5 import dataset, open_file
from ptycho_bluesky.preprocess import Canonical

__all__ = ["MAX_BYTES_IN_MEMORY", "FramesOnDemand", "canonical_frames", "square_window"]

MAX_BYTES_IN_MEMORY = 1 << 30
"""Stacks up to this size are read at once: every later access is then free."""


class FramesOnDemand:
    """A stack of canonical frames (n, N, N) that is read from its file when it is indexed.

    Parameters
    ----------
    path : path
        HDF5 file; opened for each access, so that nothing is held between them.
    name : str
        Dataset of 3 or more axes; all but the last two count frames, in C order.
    rows : ndarray of int64, shape (n,)
        Frames of the dataset to show.
    window : tuple of slice
        Rows and columns of the detector.
    mask : ndarray of bool, optional
        Of the window's shape; pixels that are False read 0.
    orientation : str
        D4 operation that takes the detector's frames to the canonical ones.
    canonical : Canonical, optional
        What makes the detector's whole frames canonical, instead of window, mask and orientation.

    Notes
    -----
    Indexing is NumPy's with the frames first; ``numpy.asarray`` reads everything.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        rows: NDArray[np.int64],
        window: tuple[slice, slice] = (slice(None), slice(None)),
        mask: NDArray[np.bool_] | None = None,
        orientation: str = "identity",
        canonical: Canonical | None = None,
    ) -> None:
        self._path, self._name, self._window, self._mask = Path(path), name, window, mask
        self._rows = np.asarray(rows, dtype=np.int64)
        self._orientation, self._canonical = orientation, canonical
        with open_file(self._path) as file:
            item = dataset(file, name)
            self.dtype: np.dtype[Any] = item.dtype
            size = tuple(len(range(*part.indices(n))) for part, n in zip(window, item.shape[-2:], strict=True))
        self._frame_shape = size
        shape = size if canonical is None else canonical.shape
        self.shape: tuple[int, int, int] = (len(self._rows), shape[0], shape[1])

    @property
    def ndim(self) -> int:
        """Always 3."""
        return 3

    @property
    def nbytes(self) -> int:
        """Size in memory, were it read."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if first is Ellipsis or first is None:
            return np.asarray(self)[key]
        selected = self._rows[first]
        frames = self._read(np.atleast_1d(selected))
        if np.ndim(selected) == 0:
            frames = frames[0]
            return frames[rest] if rest else frames
        return frames[(slice(None), *rest)] if rest else frames

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("frames on disk are always copied")
        return self._read(self._rows).astype(dtype or self.dtype, copy=False)

    def _read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        frames = np.empty((len(rows), *self._frame_shape), dtype=self.dtype)
        with open_file(self._path) as file:
            item = dataset(file, self._name)
            # Runs of neighbours in sorted order: one read each instead of one a frame.
            order = np.argsort(rows, kind="stable")
            breaks = np.flatnonzero(np.diff(rows[order]) != 1) + 1
            for run in np.split(order, breaks):
                if len(run):
                    frames[run] = self._read_run(item, int(rows[run[0]]), int(rows[run[-1]]) + 1)
        if self._canonical is not None:
            return np.ascontiguousarray(self._canonical.read(frames)[0])
        if self._mask is not None:
            frames[:, ~self._mask] = 0
        if self._orientation == "identity":
            return frames
        return np.ascontiguousarray(apply_d4(frames, self._orientation))

    def _read_run(self, item: h5py.Dataset, start: int, stop: int) -> NDArray[Any]:
        if item.ndim == 3:
            return item[(slice(start, stop), *self._window)]
        index = np.stack(np.unravel_index(np.arange(start, stop), item.shape[:-2]), axis=1)
        return np.stack([item[(*map(int, where), *self._window)] for where in index])


def canonical_frames(frames: FramesOnDemand) -> NDArray[Any] | FramesOnDemand:
    """The stack itself when it is large, else read into memory."""
    return frames if frames.nbytes > MAX_BYTES_IN_MEMORY else np.asarray(frames)


def square_window(shape: tuple[int, ...], centre: tuple[int, int]) -> tuple[tuple[slice, slice], dict[str, Any]]:
    """Largest even square about a pixel.

    Parameters
    ----------
    shape : tuple of int
        (H, W) of the detector's frames.
    centre : tuple of int
        Pixel that becomes ``[N//2, N//2]``.

    Returns
    -------
    tuple of slice
        Rows and columns to keep.
    dict
        What was cut, for the metadata; empty where nothing was.

    Raises
    ------
    InputError
        The pixel does not lie inside the frame.
    """
    rows, cols = shape
    half = min(centre[0], centre[1], rows - centre[0], cols - centre[1])
    if half < 1:
        raise InputError(f"beam centre at pixel {centre}", f"it lies inside the frame of {rows} × {cols}")
    window = (slice(centre[0] - half, centre[0] + half), slice(centre[1] - half, centre[1] + half))
    if (rows, cols) == (2 * half, 2 * half):
        return window, {}
    return window, {"cut_from": [rows, cols], "cut_centre_px": list(centre)}
