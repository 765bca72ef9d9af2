"""The records that travel through the package: one frame, one record.

Nothing in the pipeline handles an image without its index, its position, its time and, once read, the id of the model
that read it. All records are frozen; arrays inside them are by convention not written to after construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry, ObjectFrame

__all__ = [
    "FrameBatch",
    "FrameCounts",
    "FrameOrigin",
    "FrameState",
    "InferredBatch",
    "LabelSet",
    "Measurement",
    "ModelRecord",
    "ModelStage",
    "Mosaic",
    "PositionSource",
    "Reconstruction",
    "Segment",
]


class PositionSource(IntEnum):
    """Where the position of a frame came from; a larger value is the more trustworthy one."""

    NONE = 0
    PLANNED = 1
    ATTRIBUTE = 2
    FILE = 3


class FrameOrigin(IntEnum):
    """How a frame reached the edge."""

    STREAM = 0
    FILE = 1
    EVENT = 2


class FrameState(IntEnum):
    """What became of a frame that the detector generated."""

    MISSED = 0
    INFERRED = 1
    REJECTED = 2


class ModelStage(StrEnum):
    """Life of a model in the registry."""

    CANDIDATE = "candidate"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    RETIRED = "retired"


@dataclass(frozen=True)
class Segment:
    """One arming of the detector: the mapping between its unique ids and frame indices.

    Attributes
    ----------
    index : int
        Number of the segment in its run, from 0.
    first_unique_id : int
        Unique id of the segment's first frame.
    first_frame_index : int
        Frame index (row in the planned trajectory) of the segment's first frame.
    num_frames : int
        Frames that the segment was armed for; a paused segment delivers fewer.
    """

    index: int
    first_unique_id: int
    first_frame_index: int
    num_frames: int

    def frame_index(self, unique_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frame indices (n,) int64 for unique ids (n,); -1 where the id lies outside the segment."""
        offset = np.asarray(unique_id, dtype=np.int64) - self.first_unique_id
        inside = (offset >= 0) & (offset < self.num_frames)
        return np.where(inside, offset + self.first_frame_index, -1)


@dataclass(frozen=True)
class FrameBatch:
    """A batch of n frames of one run.

    Attributes
    ----------
    run_uid : str
        Uid of the run's start document.
    frame_index : ndarray of int64, shape (n,)
        Index of each frame in the run (row of the planned trajectory).
    unique_id : ndarray of int64, shape (n,)
        NDArray unique id given by the detector.
    image : ndarray, shape (n, H, W)
        Intensity in counts, zero frequency at ``[H//2, W//2]``.
    position_m : ndarray of float64, shape (n, 2)
        (y, x) of the probe's centre in metres; NaN where unknown.
    position_source : ndarray of uint8, shape (n,)
        A `PositionSource` for each frame.
    timestamp_s : ndarray of float64, shape (n,)
        End of exposure, seconds since the epoch.
    i0 : ndarray of float64, shape (n,)
        Beam-intensity monitor; NaN where unknown.
    origin : ndarray of uint8, shape (n,)
        A `FrameOrigin` for each frame.
    """

    run_uid: str
    frame_index: NDArray[np.int64]
    unique_id: NDArray[np.int64]
    image: NDArray[Any]
    position_m: NDArray[np.float64]
    position_source: NDArray[np.uint8]
    timestamp_s: NDArray[np.float64]
    i0: NDArray[np.float64]
    origin: NDArray[np.uint8]

    def __post_init__(self) -> None:
        n = len(self.frame_index)
        if self.image.ndim != 3:
            raise InputError(f"images of shape {self.image.shape}", "a batch holds images of shape (n, H, W)")
        for name in ("unique_id", "image", "position_m", "position_source", "timestamp_s", "i0", "origin"):
            if len(getattr(self, name)) != n:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} rows beside {n} frame indices",
                    "every column of a batch has one row a frame",
                )

    def __len__(self) -> int:
        return len(self.frame_index)

    def select(self, rows: NDArray[Any] | slice) -> FrameBatch:
        """Return the batch of the given rows (an index array, a boolean mask or a slice)."""
        columns = ("frame_index", "unique_id", "image", "position_m", "position_source", "timestamp_s", "i0", "origin")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    @classmethod
    def concatenate(cls, batches: list[FrameBatch]) -> FrameBatch:
        """Join batches of one run, in order."""
        first = batches[0]
        if any(batch.run_uid != first.run_uid for batch in batches):
            raise InputError("batches of different runs", "a batch belongs to one run")
        columns = ("frame_index", "unique_id", "image", "position_m", "position_source", "timestamp_s", "i0", "origin")
        return replace(first, **{name: np.concatenate([getattr(b, name) for b in batches]) for name in columns})


@dataclass(frozen=True)
class Measurement:
    """One finished scan as read from a file or a run: what engines, labels and offline inference start from.

    Attributes
    ----------
    image : array-like, shape (n, H, W)
        Canonical frames in counts, zero frequency at ``[H//2, W//2]``; an ndarray or an array read on demand.
    position_m : ndarray of float64, shape (n, 2)
        (y, x); in object pixels when ``geometry`` and ``pixel_size_m`` are unknown.
    frame_index, unique_id : ndarray of int64, shape (n,)
    timestamp_s, i0 : ndarray of float64, shape (n,)
        NaN where unknown.
    geometry : Geometry or None
    pixel_size_m : float or None
        Pixel at the sample: from the geometry, or stated; None when unknown (positions are then in object pixels).
    probe : ndarray of complex64, shape (modes, N, N), or None
        Starting probe, if the source has one.
    run_uid : str
        Uid of the run, or the file's name.
    mask : ndarray of bool, shape (H, W), or None
        True where a pixel can be trusted.
    metadata : dict
        What else the source says (e.g. where a cut file was cut).
    """

    image: Any
    position_m: NDArray[np.float64]
    frame_index: NDArray[np.int64]
    unique_id: NDArray[np.int64]
    timestamp_s: NDArray[np.float64]
    i0: NDArray[np.float64]
    geometry: Geometry | None
    pixel_size_m: float | None
    probe: NDArray[Any] | None = None
    run_uid: str = ""
    mask: NDArray[np.bool_] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def step_px_m(self) -> float:
        """Pixel of the object in the unit of ``position_m``: metres, or 1.0 when the geometry is unknown."""
        return 1.0 if self.pixel_size_m is None else self.pixel_size_m


@dataclass(frozen=True)
class InferredBatch:
    """The same frames with what the network read in them.

    Attributes
    ----------
    frames : FrameBatch
        The frames that were read, in the same order.
    phase_rad : ndarray of float32, shape (n, h, w)
        Phase of the object around each position, at the model's pixel size.
    model_id : str
        Content hash of the model.
    residual : ndarray of float32, shape (n,)
        Disagreement with the physics, NaN where it was not computed.
    """

    frames: FrameBatch
    phase_rad: NDArray[np.float32]
    model_id: str
    residual: NDArray[np.float32]


@dataclass(frozen=True)
class FrameCounts:
    """Frame accounting of one run (all counts of distinct frames except ``duplicates``).

    ``generated``: counted by the detector. ``received``: delivered by the stream. ``missed`` = generated − received.
    ``recovered``: missed frames that were read from the file and inferred. ``inferred``: inferred, recovered included.
    ``late``: inferred after the stop document or more than 1 s after their timestamp. ``rejected``: corrupt.
    ``lost`` = generated − inferred − rejected. ``unaccounted``: in none of these or counted twice.
    """

    generated: int = 0
    received: int = 0
    missed: int = 0
    recovered: int = 0
    inferred: int = 0
    late: int = 0
    rejected: int = 0
    duplicates: int = 0
    lost: int = 0
    unaccounted: int = 0

    def as_dict(self) -> dict[str, int]:
        """Counts by name."""
        return asdict(self)


@dataclass(frozen=True)
class Mosaic:
    """A stitched phase image with where it can be trusted.

    Attributes
    ----------
    phase_rad : ndarray of float32, shape (rows, cols)
        Weighted circular mean of the patches; 0 where ``weight`` is 0.
    weight : ndarray of float32, shape (rows, cols)
        Sum of the patches' weights.
    coverage : ndarray of int32, shape (rows, cols)
        Number of frames whose patch reaches the pixel.
    variance : ndarray of float32, shape (rows, cols)
        Circular variance between overlapping patches, 0 (agree) to 1.
    frame : ObjectFrame
        Origin, pixel size and shape of the canvas.
    run_uid : str
        Run that the mosaic belongs to.
    frame_log : dict of str to ndarray
        Columns ``frame_index, unique_id, position_y_m, position_x_m, position_source, model (index into
        ``model_ids``), origin, state, late, residual, timestamp_s``; one row a frame, sorted by frame index.
    model_ids : tuple of str
        Models that read the frames.
    maps : dict of str to ndarray
        Further maps on the same canvas, e.g. ``bright_field``, ``com_y_px``, ``com_x_px``.
    """

    phase_rad: NDArray[np.float32]
    weight: NDArray[np.float32]
    coverage: NDArray[np.int32]
    variance: NDArray[np.float32]
    frame: ObjectFrame
    run_uid: str
    frame_log: Mapping[str, NDArray[Any]]
    model_ids: tuple[str, ...] = ()
    maps: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """Result of an iterative engine.

    Attributes
    ----------
    object : ndarray of complex, shape (rows, cols)
        Complex transmission on ``frame``.
    probe : ndarray of complex, shape (modes, N, N)
        Probe modes, centre at ``[N//2, N//2]``; sqrt(counts) units.
    position_m : ndarray of float64, shape (n, 2)
        Positions used (y, x), refined ones if the engine refines.
    frame : ObjectFrame
        Origin, pixel size and shape of the object array.
    error : ndarray of float64, shape (iterations,)
        Normalised diffraction error of each pass, sum((|F|-sqrt(I))^2)/sum(I).
    geometry : Geometry or None
        None when unknown (``geometry: unknown`` in products).
    engine, options : str, dict
        What made it.
    run_uid : str
        Run or file it came from.
    provenance : dict
        Software versions, times, which frames were used.
    """

    object: NDArray[Any]
    probe: NDArray[Any]
    position_m: NDArray[np.float64]
    frame: ObjectFrame
    error: NDArray[np.float64]
    geometry: Geometry | None
    engine: str
    options: Mapping[str, Any]
    run_uid: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelSet:
    """Pairs of frames and phase patches for training.

    Attributes
    ----------
    image : ndarray, shape (n, H, W)
        Canonical frames in counts.
    phase_rad : ndarray of float32, shape (n, h, w)
        Label patches at ``pixel_size_m``, gauge removed.
    amplitude : ndarray of float32, shape (n, h, w)
        Amplitude patches.
    position_m : ndarray of float64, shape (n, 2)
        (y, x) of each frame.
    frame_index : ndarray of int64, shape (n,)
        Index in the run.
    probe : ndarray of complex64, shape (modes, N, N)
        Probe of the reconstruction, in the gauge of the labels.
    weight : ndarray of float32, shape (h, w)
        Area of validity by probe illumination, 0 to 1.
    pixel_size_m : float
        Pixel of the labels; NaN when the geometry is unknown (then one object pixel).
    geometry : Geometry or None
    run_uid : str
    provenance : dict
    """

    image: NDArray[Any]
    phase_rad: NDArray[np.float32]
    amplitude: NDArray[np.float32]
    position_m: NDArray[np.float64]
    frame_index: NDArray[np.int64]
    probe: NDArray[Any]
    weight: NDArray[np.float32]
    pixel_size_m: float
    geometry: Geometry | None
    run_uid: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame_index)


@dataclass(frozen=True)
class ModelRecord:
    """What the registry knows of one model (JSON-able through `as_dict`).

    Attributes
    ----------
    model_id : str
        SHA-256 of the model file, hex; the content is the name.
    parent_id : str
        Model that training started from, "" when from scratch.
    stage : ModelStage
    architecture : str
        ``ptychonn2`` or another key of `ptycho_bluesky.models`.
    image_shape, patch_shape : tuple of int
        (H, W) of the input and (h, w) of the output.
    pixel_size_m : float
        Pixel of the output; NaN when unknown.
    count_scale : float
        Scalar that the counts are multiplied by before the network.
    training_runs : tuple of str
        Uids of the runs in the corpus that trained it.
    recipe : dict
        Options of the trainer.
    validation : dict
        Figures of the gate, with what a trivial answer would score.
    geometry : dict or None
    regime : dict
        Regime (geometry and probe) that the model is for.
    created_s, promoted_s : float
        Seconds since the epoch; ``promoted_s`` is 0 until promotion.
    provenance : dict
        Software versions.
    """

    model_id: str
    parent_id: str
    stage: ModelStage
    architecture: str
    image_shape: tuple[int, int]
    patch_shape: tuple[int, int]
    pixel_size_m: float
    count_scale: float
    training_runs: tuple[str, ...]
    recipe: Mapping[str, Any]
    validation: Mapping[str, Any]
    geometry: Mapping[str, Any] | None
    regime: Mapping[str, Any]
    created_s: float
    promoted_s: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; NaN pixel size becomes None."""
        content = asdict(self)
        content["stage"] = str(self.stage)
        content["pixel_size_m"] = None if np.isnan(self.pixel_size_m) else float(self.pixel_size_m)
        for name in ("image_shape", "patch_shape", "training_runs"):
            content[name] = list(content[name])
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelRecord:
        """Inverse of `as_dict`; unknown keys are ignored."""
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        known["stage"] = ModelStage(known["stage"])
        known["pixel_size_m"] = float("nan") if known.get("pixel_size_m") is None else float(known["pixel_size_m"])
        known["image_shape"] = tuple(known["image_shape"])
        known["patch_shape"] = tuple(known["patch_shape"])
        known["training_runs"] = tuple(known["training_runs"])
        return cls(**known)
