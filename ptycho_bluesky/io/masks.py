"""Masks of bad pixels from files, and what a detector's settings say about its canonical frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.config import DetectorSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.hdf5 import HDF5_SIGNATURE, open_file
from ptycho_bluesky.preprocess import mask_ranges

__all__ = ["read_mask", "stated_canonical"]

MASK_NAME = "pixel_mask"
"""Name of the dataset in a NeXus file (NXdetector): 0 is a good pixel."""


def read_mask(path: Path | str, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read a mask: what is not 0 is bad, as in NeXus' ``pixel_mask`` and Dectris' files.

    Parameters
    ----------
    path : path
        ``.npy``, an image (TIFF, PNG), or HDF5 with a dataset called ``pixel_mask``.
    shape : tuple of int, optional
        (H, W) that it must have.

    Returns
    -------
    ndarray of bool, shape (H, W)
        True where a pixel is bad.

    Raises
    ------
    InputError
        The file cannot be read, or has another shape.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            signature = stream.read(len(HDF5_SIGNATURE))
        content = _hdf5_mask(path) if signature == HDF5_SIGNATURE else _plain_mask(path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"mask {path}: {error}", "a mask is a .npy, an image, or HDF5 with 'pixel_mask'", "check the file"
        ) from error
    if content.ndim != 2 or (shape is not None and content.shape != tuple(shape)):
        raise InputError(f"mask {path} of shape {content.shape}", f"frames have {shape}", "use the detector's own mask")
    return content != 0


def _plain_mask(path: Path) -> NDArray[Any]:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def _hdf5_mask(path: Path) -> NDArray[Any]:
    with open_file(path) as file:
        found: list[h5py.Dataset] = []

        def look(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and name.rsplit("/", 1)[-1] == MASK_NAME:
                found.append(item)

        file.visititems(look)
        if not found:
            raise InputError(f"mask {path}", f"it has no dataset '{MASK_NAME}'", "write one, or use a .npy")
        return np.asarray(found[0][()])


def stated_canonical(settings: DetectorSettings, frame_shape: tuple[int, int]) -> dict[str, Any]:
    """What settings say of the way from the detector's frames (H, W) to canonical ones.

    Returns
    -------
    dict
        What `ptycho_bluesky.preprocess.Canonical.from_run` reads under ``canonical``; empty where nothing is stated.

    Raises
    ------
    InputError
        The mask cannot be read or is of another detector.
    """
    content: dict[str, Any] = {}
    if settings.centre_px is not None:
        content["centre_px"] = list(settings.centre_px)
    if settings.num_px is not None:
        content["num_px"] = settings.num_px
    if settings.saturation_counts is not None:
        content["saturation_counts"] = settings.saturation_counts
    if settings.mask_file is not None:
        content["bad_ranges"] = mask_ranges(read_mask(settings.mask_file, frame_shape))
    return content
