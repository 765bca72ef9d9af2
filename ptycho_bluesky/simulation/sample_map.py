"""One big sample with several separate areas, rebuilt exactly from its description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.simulation import samples

__all__ = ["Area", "AreaKind", "SampleMap", "demo_map"]

AreaKind = Literal["shapes", "letters", "star", "image"]


@dataclass(frozen=True)
class Area:
    """A square patterned area of the sample.

    Attributes
    ----------
    kind : {"shapes", "letters", "star", "image"}
        What is etched.
    centre_m : tuple of float
        (y, x).
    size_m : float
        Side of the square.
    seed : int
        Of random shapes and letters.
    text : str
        Of letters; random ones when empty.
    path : str
        Image file of kind "image".
    name : str
        How reports call the area.
    """

    kind: AreaKind
    centre_m: tuple[float, float]
    size_m: float
    seed: int = 0
    text: str = ""
    path: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(AreaKind):
            raise InputError(f"area of kind {self.kind!r}", f"known ones are {', '.join(get_args(AreaKind))}")
        if not (np.isfinite(self.size_m) and self.size_m > 0 and np.isfinite(self.centre_m).all()):
            raise InputError(f"area at {self.centre_m} m of {self.size_m} m", "centre and a positive size are finite")
        if self.kind == "image" and not self.path:
            raise InputError("area of kind 'image' without a path", "it names an image file", "give path")


@dataclass(frozen=True)
class SampleMap:
    """A plain membrane (transmission 1) with patterned areas.

    Attributes
    ----------
    areas : tuple of Area
        Later areas cover earlier ones where they overlap.
    pixel_size_m : float
        Pixel of the object array.
    margin_m : float
        Plain membrane around the areas.
    max_phase_rad, min_amplitude : float
        Transmission where the thickness is 1; see `samples.transmission`.
    feature_m : tuple of float
        Smallest and largest random shape; the default is 4.3 to 30 pixels of 23.2 nm.
    fill : float
        Fraction that random shapes cover at least.
    letter_height_m : float
    """

    areas: tuple[Area, ...]
    pixel_size_m: float
    margin_m: float = 2e-6
    max_phase_rad: float = -1.0
    min_amplitude: float = 0.9
    feature_m: tuple[float, float] = (0.1e-6, 0.7e-6)
    fill: float = 0.45
    letter_height_m: float = 0.6e-6

    def __post_init__(self) -> None:
        if not self.areas:
            raise InputError("a sample without areas", "it has at least one")
        if not (np.isfinite(self.pixel_size_m) and self.pixel_size_m > 0):
            raise InputError(f"pixel_size_m = {self.pixel_size_m}", "it must be positive and finite")

    @property
    def frame(self) -> ObjectFrame:
        """Placement of the object array."""
        corners = np.array(
            [
                (c[0] + s * a.size_m / 2, c[1] + s * a.size_m / 2)
                for a in self.areas
                for c in [a.centre_m]
                for s in (-1, 1)
            ]
        )
        return ObjectFrame.around(corners, 1, self.pixel_size_m, margin_px=round(self.margin_m / self.pixel_size_m))

    def object(self) -> tuple[NDArray[np.complex64], ObjectFrame]:
        """Render the sample.

        Returns
        -------
        ndarray of complex64, shape (rows, cols)
            Transmission.
        ObjectFrame
            Its placement.
        """
        frame = self.frame
        thickness = np.zeros(frame.shape, dtype=np.float32)
        for area in self.areas:
            top, left = np.rint(frame.to_px(np.subtract(area.centre_m, area.size_m / 2))).astype(int)
            side = max(1, round(area.size_m / self.pixel_size_m))
            thickness[top : top + side, left : left + side] = self._pattern(area, side)
        wave = samples.transmission(thickness, max_phase_rad=self.max_phase_rad, min_amplitude=self.min_amplitude)
        return wave, frame

    def _pattern(self, area: Area, side: int) -> NDArray[np.float32]:
        shape = (side, side)
        if area.kind == "shapes":
            smallest, largest = (size / self.pixel_size_m for size in self.feature_m)
            return samples.random_shapes(shape, feature_px=(smallest, largest), fill=self.fill, seed=area.seed)
        if area.kind == "letters":
            height_px = self.letter_height_m / self.pixel_size_m
            return samples.letters(shape, text=area.text, height_px=height_px, seed=area.seed)
        if area.kind == "star":
            return samples.siemens_star(shape)
        return samples.from_image(shape, area.path)

    def smallest_gap_m(self) -> float:
        """Width of the membrane between the two closest areas (inf for one area, negative where they overlap)."""
        gap = np.inf
        for k, one in enumerate(self.areas):
            for other in self.areas[:k]:
                apart = np.abs(np.subtract(one.centre_m, other.centre_m)) - (one.size_m + other.size_m) / 2
                gap = min(gap, float(np.hypot(*np.maximum(apart, 0))) if (apart > 0).any() else float(apart.max()))
        return gap

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` rebuilds the same object from it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SampleMap:
        """Inverse of `as_dict`.

        Raises
        ------
        InputError
            A key is unknown or missing.
        """
        try:
            known = dict(content)
            areas = [Area(**{**area, "centre_m": _pair(area["centre_m"])}) for area in known.pop("areas")]
            if "feature_m" in known:
                known["feature_m"] = _pair(known["feature_m"])
            return cls(areas=tuple(areas), **known)
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"sample description: {error!r}", "it has the keys of SampleMap and Area") from error


def _pair(values: Sequence[float]) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)


def demo_map(
    num_shapes: int = 12,
    *,
    size_m: float = 5e-6,
    gap_m: float = 2e-6,
    pixel_size_m: float,
    seed: int = 0,
    text: str = "",
    num_letters: int = 1,
) -> SampleMap:
    """Areas of random shapes, then one (or more) of letters, on a square grid about (0, 0).

    Parameters
    ----------
    num_shapes : int
        Areas of random shapes, named ``shapes-0`` …; the areas of letters, named ``letters-0`` …, follow.
    size_m : float
        Side of an area; 963 points of a spiral of 100 nm step span 3.5 µm, and the window adds 1.5 µm.
    gap_m : float
        Membrane between areas; more than the window of the default experiment (1.49 µm), so that no frame sees two.
    pixel_size_m : float
        Object pixel; take it from the geometry.
    seed : int
        Seeds of the areas derive from it.
    text : str
        Of the letters; random when empty.
    num_letters : int
        Areas of letters.

    Returns
    -------
    SampleMap
        ``areas`` in the order of the names.
    """
    total = num_shapes + num_letters
    if num_shapes < 0 or num_letters < 0 or total < 1:
        raise InputError(f"{num_shapes} areas of shapes and {num_letters} of letters", "a sample has at least one area")
    seeds = np.random.SeedSequence(seed).generate_state(total)
    num_cols = int(np.ceil(np.sqrt(total)))
    num_rows = int(np.ceil(total / num_cols))
    pitch_m = size_m + gap_m
    areas = []
    for k in range(total):
        row, col = divmod(k, num_cols)
        centre = ((row - (num_rows - 1) / 2) * pitch_m, (col - (num_cols - 1) / 2) * pitch_m)
        kind: AreaKind = "shapes" if k < num_shapes else "letters"
        name = f"{kind}-{k if k < num_shapes else k - num_shapes}"
        areas.append(Area(kind, centre, size_m, seed=int(seeds[k]), text=text if kind == "letters" else "", name=name))
    return SampleMap(tuple(areas), pixel_size_m)
