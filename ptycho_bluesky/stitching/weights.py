"""How much each pixel of a patch counts in the mosaic.

A diffraction frame holds information only about the lit part of its window, so a network's patch is reliable there
alone. The default weight is a disc with a raised-cosine edge over the central part; a model's manifest may state a
better one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError

__all__ = [
    "DEFAULT_EDGE",
    "DEFAULT_RADIUS",
    "cosine_weight",
    "crop_weight",
    "disc_weight",
    "probe_weight",
    "weight_from_manifest",
]

DEFAULT_RADIUS = 0.30
"""Radius of the default disc, as a fraction of the patch: a zone-plate beam sampled as the geometry check demands
(window ≥ 1.5 × the 90 % diameter) lights about this much."""
DEFAULT_EDGE = 0.10
"""Width of its soft edge, as a fraction of the patch."""


def disc_weight(
    patch_shape: tuple[int, int], radius_px: float | None = None, edge_px: float | None = None
) -> NDArray[np.float32]:
    """Disc about the patch's centre ``[h//2, w//2]`` with a raised-cosine edge.

    Parameters
    ----------
    patch_shape : tuple of int
        (h, w).
    radius_px : float, optional
        Radius at half weight; by default `DEFAULT_RADIUS` of the shorter side.
    edge_px : float, optional
        Full width of the edge; by default `DEFAULT_EDGE` of the shorter side.

    Returns
    -------
    ndarray of float32, shape (h, w)
        1 inside, 0 outside, ½(1 + cos) between.
    """
    side = min(patch_shape)
    radius = DEFAULT_RADIUS * side if radius_px is None else float(radius_px)
    edge = DEFAULT_EDGE * side if edge_px is None else float(edge_px)
    if not radius > 0 or not edge >= 0:
        raise InputError(f"patch weight of radius {radius} px and edge {edge} px", "they must be positive")
    rows, cols = (np.arange(size) - size // 2 for size in patch_shape)
    distance = np.hypot(rows[:, None], cols[None, :])
    ramp = np.clip((distance - (radius - edge / 2)) / max(edge, 1e-6), 0.0, 1.0)
    return (0.5 * (1.0 + np.cos(np.pi * ramp))).astype(np.float32)


def crop_weight(patch_shape: tuple[int, int], size_px: int) -> NDArray[np.float32]:
    """The central square of a patch alone.

    Parameters
    ----------
    patch_shape : tuple of int
        (h, w).
    size_px : int
        Rows and columns that count, about ``[h//2, w//2]``.

    Returns
    -------
    ndarray of float32, shape (h, w)
        1 inside, 0 outside.
    """
    if not 0 < size_px <= min(patch_shape):
        raise InputError(f"a crop of {size_px} px", f"it must be between 1 and the patch's {min(patch_shape)} px")
    weight = np.zeros(patch_shape, dtype=np.float32)
    row, col = ((side // 2) - size_px // 2 for side in patch_shape)
    weight[row : row + size_px, col : col + size_px] = 1.0
    return weight


def cosine_weight(patch_shape: tuple[int, int]) -> NDArray[np.float32]:
    """Raised cosine over the whole patch: no pixel counts nothing, and none at the rim counts much.

    Parameters
    ----------
    patch_shape : tuple of int
        (h, w).

    Returns
    -------
    ndarray of float32, shape (h, w)
        Product of ½(1 − cos(2π(k + ½)/n)) along both axes, at most 1, at least 0.01.
    """
    rows, cols = (0.5 * (1.0 - np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)) for n in patch_shape)
    return np.maximum(np.outer(rows, cols), 0.01).astype(np.float32)


def probe_weight(probe: NDArray[Any], patch_shape: tuple[int, int], floor: float = 0.02) -> NDArray[np.float32]:
    """Weight by how brightly the probe lights each pixel.

    Parameters
    ----------
    probe : ndarray of complex, shape (N, N) or (modes, N, N)
        At the patch's pixel size, centre at ``[N//2, N//2]``.
    patch_shape : tuple of int
        (h, w); the probe is cut or filled up about its centre.
    floor : float
        Pixels under this share of the brightest count nothing.

    Returns
    -------
    ndarray of float32, shape (h, w)
        Intensity, at most 1.

    Raises
    ------
    InputError
        The probe is dark, or not finite.
    """
    intensity = (np.abs(np.asarray(probe).reshape(-1, *np.shape(probe)[-2:])) ** 2).sum(axis=0)
    if not np.isfinite(intensity).all() or intensity.max() <= 0:
        raise InputError("probe for a patch weight", "it must be finite and lit somewhere")
    weight = np.zeros(patch_shape, dtype=np.float32)
    into, out_of = [], []
    for side, size in zip(patch_shape, intensity.shape, strict=True):
        before = min(side // 2, size // 2)
        after = min(side - side // 2, size - size // 2)
        into.append(slice(side // 2 - before, side // 2 + after))
        out_of.append(slice(size // 2 - before, size // 2 + after))
    weight[tuple(into)] = intensity[tuple(out_of)] / intensity.max()
    weight[weight < floor] = 0.0
    return weight


def weight_from_manifest(manifest: Mapping[str, Any], patch_shape: tuple[int, int]) -> NDArray[np.float32]:
    """Patch weight that a model's manifest states under ``patch_weight``, or the default disc.

    Parameters
    ----------
    manifest : mapping
        ``patch_weight`` is a nested list (h, w), ``{"radius_px": …, "edge_px": …}`` for a disc, ``{"crop_px": …}`` or
        ``{"kind": "cosine"}``; it may be missing.
    patch_shape : tuple of int
        (h, w).

    Returns
    -------
    ndarray of float32, shape (h, w)

    Raises
    ------
    InputError
        The stated weight has another shape, or negative, missing or no positive values.
    """
    stated = manifest.get("patch_weight")
    if stated is None:
        return disc_weight(patch_shape)
    if isinstance(stated, Mapping):
        if "crop_px" in stated:
            return crop_weight(patch_shape, int(stated["crop_px"]))
        if stated.get("kind") == "cosine":
            return cosine_weight(patch_shape)
        return disc_weight(patch_shape, stated.get("radius_px"), stated.get("edge_px"))
    weight = np.asarray(stated, dtype=np.float32)
    if weight.shape != tuple(patch_shape):
        raise InputError(f"patch weight of shape {weight.shape}", f"the model's patch has shape {patch_shape}")
    if not np.isfinite(weight).all() or weight.min() < 0 or weight.max() <= 0:
        raise InputError("patch weight", "it must be finite, not negative, and positive somewhere")
    return weight / weight.max()
