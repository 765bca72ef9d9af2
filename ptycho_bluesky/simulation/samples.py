"""Sample generators: maps of thickness between 0 and 1, and the transmission that they give.

All edges are one pixel soft (the covered fraction of the pixel), as no real edge is sharper than the object pixel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ptycho_bluesky.errors import InputError

__all__ = [
    "from_image",
    "letters",
    "random_shapes",
    "siemens_star",
    "transmission",
    "transmission_from_material",
]

SHAPE_KINDS = ("rectangle", "disc", "ring", "triangle", "line")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DRAW_OVERSAMPLING = 4


def _checked_shape(shape_px: tuple[int, int]) -> tuple[int, int]:
    rows, cols = (int(size) for size in shape_px)
    if rows < 1 or cols < 1:
        raise InputError(f"sample of {rows} × {cols} pixels", "it has at least one pixel")
    return rows, cols


def random_shapes(
    shape_px: tuple[int, int],
    *,
    feature_px: tuple[float, float] = (4.0, 30.0),
    fill: float = 0.45,
    depth: tuple[float, float] = (0.6, 1.0),
    seed: int = 0,
) -> NDArray[np.float32]:
    """Etched shapes at random: rotated rectangles, discs, rings, triangles and lines.

    Parameters
    ----------
    shape_px : tuple of int
        (rows, cols).
    feature_px : tuple of float
        Smallest and largest size of a shape in pixels, drawn log-uniformly.
    fill : float
        Fraction of the area that shapes cover at least, 0 to 0.9.
    depth : tuple of float
        Range of thickness of a shape, uniform; where shapes overlap the thicker one counts.
    seed : int
        The same seed gives the same map.

    Returns
    -------
    ndarray of float32, shape (rows, cols)
        Thickness, 0 to 1.
    """
    rows, cols = _checked_shape(shape_px)
    if not 0 < feature_px[0] <= feature_px[1]:
        raise InputError(f"feature_px = {feature_px}", "sizes are positive, the smaller one first")
    if not 0 <= fill <= 0.9:
        raise InputError(f"fill = {fill}", "it lies between 0 and 0.9")
    if not 0 <= depth[0] <= depth[1] <= 1:
        raise InputError(f"depth = {depth}", "it lies between 0 and 1, the smaller one first")
    rng = np.random.default_rng(seed)
    thickness = np.zeros((rows, cols), dtype=np.float32)
    # Counting the covered pixels after every shape would cost more than drawing it.
    batch = max(1, round(0.05 * rows * cols / (feature_px[0] * feature_px[1])))
    while np.count_nonzero(thickness) < fill * rows * cols:
        for _ in range(batch):
            _draw_shape(thickness, rng, feature_px, depth)
    return thickness


def _draw_shape(
    thickness: NDArray[np.float32],
    rng: np.random.Generator,
    feature_px: tuple[float, float],
    depth: tuple[float, float],
) -> None:
    kind = SHAPE_KINDS[rng.integers(len(SHAPE_KINDS))]
    size = float(np.exp(rng.uniform(np.log(feature_px[0]), np.log(feature_px[1]))))
    aspect, angle, level = rng.uniform(0.25, 1.0), rng.uniform(0, 2 * np.pi), rng.uniform(*depth)
    row, col = rng.uniform(-0.5, thickness.shape[0] - 0.5), rng.uniform(-0.5, thickness.shape[1] - 0.5)
    reach = 0.75 * size + 0.2 * feature_px[0] + 2.0
    top, bottom = max(0, int(row - reach)), min(thickness.shape[0], int(row + reach) + 2)
    left, right = max(0, int(col - reach)), min(thickness.shape[1], int(col + reach) + 2)
    y = (np.arange(top, bottom) - row)[:, None]
    x = (np.arange(left, right) - col)[None, :]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = _signed_distance_px(kind, along, across, size, aspect, feature_px[0])
    # One pixel soft: the covered fraction of a pixel that a straight edge crosses at this distance.
    covered = np.clip(0.5 - distance, 0.0, 1.0) * level
    box = thickness[top:bottom, left:right]
    np.maximum(box, covered.astype(np.float32), out=box)


def _signed_distance_px(
    kind: str, along: NDArray[np.float64], across: NDArray[np.float64], size: float, aspect: float, smallest: float
) -> NDArray[np.float64]:
    """Distance to the shape's edge, negative inside; every shape fits a circle of diameter about ``size``·√2."""
    half = size / 2
    if kind == "rectangle":
        beyond_along, beyond_across = np.abs(along) - half, np.abs(across) - max(half * aspect, smallest / 2)
        outside = np.hypot(np.maximum(beyond_along, 0), np.maximum(beyond_across, 0))
        return outside + np.minimum(np.maximum(beyond_along, beyond_across), 0)
    if kind == "disc":
        return np.hypot(along, across) - half
    if kind == "ring":
        width = max(0.35 * size * aspect, 0.5 * smallest)
        return np.abs(np.hypot(along, across) - (half - width / 2)) - width / 2
    if kind == "triangle":
        normals = np.deg2rad([90.0, 210.0, 330.0])
        return np.stack([np.cos(n) * along + np.sin(n) * across for n in normals]).max(axis=0) - half / 2
    width = max(0.15 * size, 0.5 * smallest)
    return np.hypot(along - np.clip(along, -half, half), across) - width / 2


def letters(
    shape_px: tuple[int, int], *, text: str = "", height_px: float = 26.0, seed: int = 0
) -> NDArray[np.float32]:
    """Lines of capital letters that fill the area.

    Parameters
    ----------
    shape_px : tuple of int
        (rows, cols).
    text : str
        Repeated to fill the area; drawn at random from the alphabet when empty.
    height_px : float
        Height of a capital letter.
    seed : int
        Of the letters when ``text`` is empty.

    Returns
    -------
    ndarray of float32, shape (rows, cols)
        Thickness, 0 or 1 with edges one pixel soft.
    """
    rows, cols = _checked_shape(shape_px)
    if not height_px >= 2:
        raise InputError(f"height_px = {height_px}", "a letter has at least 2 pixels")
    rng = np.random.default_rng(seed)
    scale = DRAW_OVERSAMPLING
    font = ImageFont.load_default(size=height_px * scale / 0.72)
    image = Image.new("L", (cols * scale, rows * scale))
    draw = ImageDraw.Draw(image)
    stroke = 0.04 * height_px * scale
    pitch_row, pitch_col = 1.35 * height_px * scale, 1.0 * height_px * scale
    num_rows, num_cols = int(np.ceil(image.height / pitch_row)), int(np.ceil(image.width / pitch_col))
    source = text.upper() or "".join(rng.choice(list(ALPHABET), size=num_rows * num_cols))
    for k in range(num_rows * num_cols):
        row, col = divmod(k, num_cols)
        centre = ((col + 0.5) * pitch_col, (row + 0.5) * pitch_row)
        draw.text(centre, source[k % len(source)], fill=255, font=font, anchor="mm", stroke_width=stroke)
    return _box_average(image, scale)


def siemens_star(
    shape_px: tuple[int, int], *, num_spokes: int = 36, inner_px: float = 2.0, outer_px: float | None = None
) -> NDArray[np.float32]:
    """A Siemens star with concentric gaps, centred on pixel ``[rows//2, cols//2]``.

    Parameters
    ----------
    shape_px : tuple of int
        (rows, cols).
    num_spokes : int
        Spokes around the circle.
    inner_px, outer_px : float
        Radii between which the spokes run; the outer one is by default 0.48 of the smaller side.

    Returns
    -------
    ndarray of float32, shape (rows, cols)
        Thickness, 0 or 1 with edges about one pixel soft.
    """
    rows, cols = _checked_shape(shape_px)
    outer = 0.48 * min(rows, cols) if outer_px is None else float(outer_px)
    if num_spokes < 1 or not 0 <= inner_px < outer:
        raise InputError(
            f"num_spokes = {num_spokes}, radii {inner_px} to {outer} px", "it has spokes and a positive width"
        )
    y = (np.arange(rows) - rows // 2)[:, None]
    x = (np.arange(cols) - cols // 2)[None, :]
    radius = np.hypot(y, x)
    spokes = np.sin(num_spokes * np.arctan2(y, x)) * radius / num_spokes
    gap_px = 0.03 * outer
    to_gap = np.stack([np.abs(radius - part * outer) for part in (0.25, 0.5, 0.75)]).min(axis=0)
    inside = np.stack([spokes, outer - radius, radius - inner_px, to_gap - gap_px / 2]).min(axis=0)
    return np.clip(0.5 + inside, 0.0, 1.0).astype(np.float32)


def from_image(shape_px: tuple[int, int], path: str | Path) -> NDArray[np.float32]:
    """Thickness from the grey levels of an image file, stretched to the area; the brightest level is 1, the darkest 0.

    Parameters
    ----------
    shape_px : tuple of int
        (rows, cols).
    path : str or Path
        Any file that Pillow reads.

    Returns
    -------
    ndarray of float32, shape (rows, cols)

    Raises
    ------
    InputError
        The file cannot be read as an image, or shows one grey level only.
    """
    rows, cols = _checked_shape(shape_px)
    try:
        with Image.open(path) as image:
            # "F" keeps the levels of 16-bit files, which "L" would clip.
            grey = image.convert("F" if image.mode.startswith(("I", "F")) else "L").convert("F")
            level = np.asarray(grey.resize((cols, rows), Image.Resampling.BILINEAR), dtype=np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"image {path}: {error}", "it must be an image file", "use e.g. a PNG") from error
    low, high = float(level.min()), float(level.max())
    if not high > low:
        raise InputError(f"image {path} is of one grey level", "a sample has contrast")
    return (level - low) / (high - low)


def _box_average(image: Image.Image, scale: int) -> NDArray[np.float32]:
    fine = np.asarray(image, dtype=np.float32) / 255.0
    rows, cols = fine.shape[0] // scale, fine.shape[1] // scale
    return fine.reshape(rows, scale, cols, scale).mean(axis=(1, 3)).astype(np.float32)


def transmission(
    thickness: NDArray[np.float32], *, max_phase_rad: float = -1.0, min_amplitude: float = 0.9
) -> NDArray[np.complex64]:
    """Transmission O = A·exp(iφ) of a map of thickness from stated phase and amplitude.

    Parameters
    ----------
    thickness : ndarray of float32, shape (rows, cols)
        0 to 1.
    max_phase_rad : float
        Phase where the thickness is 1; negative for a solid in the convention of this package.
    min_amplitude : float
        Amplitude where the thickness is 1; falls exponentially with thickness, as absorption does.

    Returns
    -------
    ndarray of complex64, shape (rows, cols)

    Notes
    -----
    The defaults are those of 0.6 µm of tungsten at 10 keV (δ = 3.3e-5, β = 3.5e-6).
    """
    if not 0 < min_amplitude <= 1:
        raise InputError(f"min_amplitude = {min_amplitude}", "it lies above 0 and up to 1")
    return np.exp(thickness * np.complex64(np.log(min_amplitude) + 1j * max_phase_rad)).astype(np.complex64)


def transmission_from_material(
    thickness_m: NDArray[np.floating], delta: float, beta: float, wavelength_m: float
) -> NDArray[np.complex64]:
    """Transmission exp(ik(n − 1)t) = exp(−kβt)·exp(−ikδt) of a material of index n = 1 − δ + iβ.

    Parameters
    ----------
    thickness_m : ndarray of float, shape (rows, cols)
        Thickness in m.
    delta, beta : float
        Decrements of the refractive index.
    wavelength_m : float

    Returns
    -------
    ndarray of complex64, shape (rows, cols)
        The projection approximation (Paganin, Coherent X-Ray Optics, eq. 2.39).
    """
    if beta < 0 or not wavelength_m > 0:
        raise InputError(f"beta = {beta}, wavelength_m = {wavelength_m}", "absorption and wavelength are not negative")
    k = 2.0 * np.pi / wavelength_m
    return np.exp(-k * (beta + 1j * delta) * np.asarray(thickness_m, dtype=np.float64)).astype(np.complex64)
