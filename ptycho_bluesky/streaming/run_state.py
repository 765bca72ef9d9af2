"""One run at the edge: its documents, its account, its image, and what is still to be done for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.inference import LoadedModel, check_model
from ptycho_bluesky.preprocess import Canonical, find_fault
from ptycho_bluesky.records import FrameBatch, FrameCounts, FrameOrigin, InferredBatch, Mosaic, PositionSource
from ptycho_bluesky.stitching.moments import frame_moments
from ptycho_bluesky.stitching.mosaic import MAPS, MosaicImage
from ptycho_bluesky.streaming.accounting import NO_SLOT, Ledger, RowJoiner, Verdict
from ptycho_bluesky.streaming.frames import Frame
from ptycho_bluesky.streaming.run_documents import RunDocuments, SegmentEnd, SegmentStart
from ptycho_bluesky.streaming.run_image import RunImage
from ptycho_bluesky.streaming.sources_file import FileColumns
from ptycho_bluesky.streaming.trust import RunTrust

__all__ = ["Batch", "Phase", "RunState"]

logger = logging.getLogger(__name__)

# plain numbers: comparing an array with a member of an enumeration takes longer than the comparison
_UNKNOWN, _ACCEPTED = int(Verdict.UNKNOWN), int(Verdict.ACCEPTED)
_NONE, _PLANNED, _ATTRIBUTE = int(PositionSource.NONE), int(PositionSource.PLANNED), int(PositionSource.ATTRIBUTE)
MAP_REACH = 0.125
"""Width by which a frame counts in the map of residuals, in windows: about a third of the beam."""
LATE_S = 1.0
"""A frame inferred later than this after its timestamp is late (design §3)."""


class Phase(IntEnum):
    """Life of a run at the edge."""

    OPEN = 0
    """Frames arrive."""
    DRAINING = 1
    """Stopped; the last frames of the stream are awaited."""
    READING = 2
    """What the stream missed is read from the file."""
    CLOSED = 3
    """Counted and published."""


@dataclass(frozen=True)
class Batch:
    """Frames of one run that were joined, with their slots."""

    frames: FrameBatch
    slots: NDArray[np.int64]


@dataclass
class RunState:
    """What the edge holds of one run.

    Parameters
    ----------
    documents : RunDocuments
    live : bool
        Whether frames of the stream may belong to it; a run that is caught up takes them from its file alone.
    wall_clock : bool
        Whether timestamps can be compared with now, to tell late frames; False when a file is played back.
    """

    documents: RunDocuments
    live: bool = True
    wall_clock: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    phase: Phase = Phase.OPEN
    models: list[str] = field(default_factory=list)
    residual_share: float = 0.05
    """Part of the run's time that residuals may take."""
    solve_offsets: bool = False
    """Whether patches are turned so that they agree with the image under them."""
    active_s: float = field(default_factory=time.monotonic)
    model_errors: dict[str, str] = field(default_factory=dict)
    _canonical: Canonical | None = None
    _image: RunImage | None = None
    _trust: RunTrust | None = None

    @property
    def uid(self) -> str:
        """Uid of the run."""
        return self.documents.uid

    @property
    def image(self) -> RunImage | None:
        """Its image, None before the first frame."""
        return self._image

    # --- documents ---------------------------------------------------------------------------------------------------

    def take_event(self, doc: dict[str, Any]) -> bool:
        """Take an event document; True when a segment was announced, so that frames held back may find their place.

        Raises
        ------
        InputError
            The event cannot be read or contradicts an earlier one.
        """
        content = self.documents.read_event(doc)
        if isinstance(content, SegmentStart):
            moves = self.ledger.add_segment(content.segment, content.time_s, content.first_row)
            if self._image is not None:
                self._image.rename(moves)
            return True
        if isinstance(content, SegmentEnd):
            self.ledger.end_segment(content.index, content.frames_generated, content.time_s)
        elif self._image is not None and self._image.planned_m is None:
            self._image.planned_m = self.documents.planned_m
        return False

    # --- the join ----------------------------------------------------------------------------------------------------

    def join(self, frames: Sequence[Frame]) -> tuple[Batch | None, list[Frame]]:
        """Join frames of the stream to the run.

        Returns
        -------
        batch : Batch or None
            The frames that are the run's, whole and new.
        unknown : list of Frame
            Those that are not the run's, or not yet.
        """
        verdict, slots = self._verdicts(frames)
        accepted = np.flatnonzero(verdict == _ACCEPTED)
        accepted = accepted[~self.ledger.is_inferred(slots[accepted])]
        unknown = [frames[i] for i in np.flatnonzero(verdict == _UNKNOWN).tolist()]
        if not len(accepted):
            return None, unknown
        return self._batch([frames[i] for i in accepted.tolist()], slots[accepted]), unknown

    def _verdicts(self, frames: Sequence[Frame]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """What each frame (n,) is, and its slot; a faulty one, which is refused, has the verdict of a duplicate."""
        unique_id = np.array([frame.unique_id for frame in frames], dtype=np.int64)
        timestamp_s = np.array([frame.timestamp_s for frame in frames], dtype=np.float64)
        verdict, slots = np.empty(len(frames), dtype=np.uint8), np.full(len(frames), NO_SLOT, dtype=np.int64)
        begin = 0
        shape = self.documents.frame_shape or (self._canonical.frame_shape if self._canonical else None)
        for i, frame in enumerate(frames):
            fault = frame.fault or self._fault(frame, shape)
            if fault:
                # in the order of arrival: a corrupt frame may come again whole, and a copy of a whole one corrupt
                whole = slice(begin, i)
                verdict[whole], slots[whole] = self.ledger.offer_many(unique_id[whole], timestamp_s[whole])
                refused, _ = self.ledger.refuse(frame.unique_id, frame.timestamp_s, fault)
                verdict[i] = Verdict.UNKNOWN if refused is Verdict.UNKNOWN else Verdict.DUPLICATE
                begin = i + 1
        verdict[begin:], slots[begin:] = self.ledger.offer_many(unique_id[begin:], timestamp_s[begin:])
        return verdict, slots

    @staticmethod
    def _fault(frame: Frame, shape: tuple[int, int] | None) -> str:
        if shape is None:
            shape = (frame.image.shape[0], frame.image.shape[1]) if frame.image.ndim == 2 else (0, 0)
        return find_fault(frame.image, shape)

    def _batch(self, joined: Sequence[Frame], slots: NDArray[np.int64]) -> Batch:
        index = self.ledger.frame_index(slots)
        position = np.array([frame.position_m for frame in joined], dtype=np.float64)
        known = np.isfinite(position).all(axis=1)
        source = np.where(known, _ATTRIBUTE, _NONE).astype(np.uint8)
        for i in np.flatnonzero(~known).tolist():
            position[i] = self.documents.position_at(int(index[i]))
            if np.isfinite(position[i]).all():
                source[i] = _PLANNED
        frames = FrameBatch(
            run_uid=self.uid,
            frame_index=index,
            unique_id=np.array([frame.unique_id for frame in joined], dtype=np.int64),
            image=np.stack([frame.image for frame in joined]),
            position_m=position,
            position_source=source,
            timestamp_s=np.array([frame.timestamp_s for frame in joined], dtype=np.float64),
            i0=np.array([frame.i0 for frame in joined], dtype=np.float64),
            origin=np.array([frame.origin for frame in joined], dtype=np.uint8),
        )
        return Batch(frames, slots)

    # --- inference and image -----------------------------------------------------------------------------------------

    def process(self, batch: Batch, model: LoadedModel | None, now_s: float) -> InferredBatch:
        """Read a batch with the model, place it in the image and enter it in the account."""
        canonical = self._canonical_for(batch.frames.image)
        raw, unusable = canonical.read(batch.frames.image)
        counts = np.ascontiguousarray(raw, dtype=np.float32)
        factor = self.trust.factors(model, batch.frames.i0)
        phase = self._infer(counts, model, factor)
        weight = model.weight if model is not None and phase is not None else None
        image = self._image_for(canonical)
        values = frame_moments(counts)
        frames = batch.frames
        image.add(batch.slots, frames.position_m, frames.position_source, values, phase, weight)
        residual, flag = np.full(len(frames), np.nan, dtype=np.float32), np.zeros(len(frames), dtype=np.uint8)
        if model is not None and phase is not None:
            residual, flag = self.trust.check(model, counts, phase, factor, canonical.good, unusable)
        model_id = model.model_id if model is not None and phase is not None else ""
        self.ledger.set_position(batch.slots, frames.position_m, frames.position_source)
        self.ledger.record(
            batch.slots,
            origin=frames.origin,
            timestamp_s=frames.timestamp_s,
            model=self._model_number(model_id),
            late=self._late(frames, now_s),
            residual=residual,
            flag=flag,
        )
        if phase is None:
            phase = np.zeros((len(frames), 0, 0), dtype=np.float32)
        return InferredBatch(frames, phase, model_id, residual)

    @property
    def trust(self) -> RunTrust:
        """The checks beside its inference."""
        if self._trust is None:
            self._trust = RunTrust(self.documents.light, self.residual_share)
        return self._trust

    @property
    def flagged_i0(self) -> int:
        """Frames without a usable beam monitor."""
        return self.trust.frames_without_i0

    def _infer(
        self, counts: NDArray[np.float32], model: LoadedModel | None, factor: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        if model is None:
            return None
        if model.model_id not in self.model_errors:
            self.model_errors[model.model_id] = self._misfit(model, (counts.shape[1], counts.shape[2]))
        if self.model_errors[model.model_id]:
            return None
        try:
            return self.trust.scaled(model, counts, factor)
        except (InputError, RuntimeError, MemoryError) as error:
            logger.error("model %s fails on run %s: %s", model.model_id[:12], self.uid[:8], error)
            self.model_errors[model.model_id] = str(error)
            return None

    def _misfit(self, model: LoadedModel, shape: tuple[int, int]) -> str:
        try:
            check_model(model.engine.manifest, shape, self.documents.pixel_size_m, model.model_id)
        except InputError as error:
            logger.error("run %s goes without model: %s", self.uid[:8], error)
            return str(error)
        return ""

    def _canonical_for(self, image: NDArray[Any]) -> Canonical:
        if self._canonical is None:
            shape = self.documents.frame_shape or (image.shape[1], image.shape[2])
            self._canonical = Canonical.from_run(self.documents.ptycho, shape)
        return self._canonical

    def _image_for(self, canonical: Canonical) -> RunImage:
        if self._image is None:
            pixel = self.documents.pixel_size_m or 1.0
            self._image = RunImage(canonical.shape, pixel, self.documents.planned_m, solve_offsets=self.solve_offsets)
        return self._image

    def _model_number(self, model_id: str) -> int:
        if not model_id:
            return -1
        if model_id not in self.models:
            self.models.append(model_id)
        return self.models.index(model_id)

    def _late(self, frames: FrameBatch, now_s: float) -> NDArray[np.bool_]:
        if not self.wall_clock:
            return np.zeros(len(frames), dtype=bool)
        after_stop = self.phase is not Phase.OPEN
        offset = self.ledger.clock_offset_s
        return np.asarray((now_s - (frames.timestamp_s + offset) > LATE_S) | after_stop)

    # --- the file ----------------------------------------------------------------------------------------------------

    def confirm_positions(self, columns: FileColumns, slots: NDArray[np.int64]) -> None:
        """Take measured positions of the file's rows (n,) for the frames that have none or a provisional one."""
        known = (slots != NO_SLOT) & np.isfinite(columns.position_m).all(axis=1)
        slots, position = slots[known], columns.position_m[known]
        if self._image is not None:
            self._image.confirm(slots, position)
        weak = self.ledger.position_source(slots) < PositionSource.ATTRIBUTE
        done = self.ledger.is_inferred(slots)
        self.ledger.set_position(slots[weak & done], position[weak & done], PositionSource.FILE)

    def reconcile(self, columns: FileColumns, slots: NDArray[np.int64]) -> None:
        """Let the file's ids and times correct the slots of frames that the stream's ids alone led astray."""
        known = slots != NO_SLOT
        moves = self.ledger.reconcile(slots[known], columns.timestamp_s[known])
        if moves:
            logger.warning("run %s: %d frames put right by the file's time stamps", self.uid[:8], len(moves))
            if self._image is not None:
                self._image.rename(moves)

    def join_rows(self, columns: FileColumns) -> NDArray[np.int64]:
        """Slots (n,) of all rows of the file, read from the first; frames in it count as generated."""
        slots = RowJoiner(self.ledger).join(columns.unique_id, columns.timestamp_s)
        self.ledger.note_row(slots[slots != NO_SLOT])
        return slots

    def batch_of_rows(
        self, columns: FileColumns, rows: NDArray[np.int64], slots: NDArray[np.int64], image: NDArray[Any]
    ) -> Batch | None:
        """Batch of rows (n,) that were read from the file; faulty and already inferred ones are left out."""
        keep = []
        done = self.ledger.is_inferred(slots)
        shape = self.documents.frame_shape or (image.shape[1], image.shape[2])
        for i in range(len(rows)):
            fault = find_fault(image[i], shape)
            if fault:
                self.ledger.reject(int(slots[i]), f"file: {fault}", FrameOrigin.FILE)
            elif not done[i]:
                keep.append(i)
        if not keep:
            return None
        kept = np.array(keep)
        at, slots = rows[kept] - columns.first_row, slots[kept]
        index = self.ledger.frame_index(slots)
        position = columns.position_m[at]
        known = np.isfinite(position).all(axis=1)
        source = np.where(known, PositionSource.FILE, PositionSource.NONE)
        for i in np.flatnonzero(~known).tolist():
            position[i] = self.documents.position_at(int(index[i]))
            source[i] = PositionSource.PLANNED if np.isfinite(position[i]).all() else PositionSource.NONE
        frames = FrameBatch(
            run_uid=self.uid,
            frame_index=index,
            unique_id=columns.unique_id[at],
            image=image[kept],
            position_m=position,
            position_source=source.astype(np.uint8),
            timestamp_s=columns.timestamp_s[at],
            i0=columns.i0[at],
            origin=np.full(len(kept), FrameOrigin.FILE, dtype=np.uint8),
        )
        return Batch(frames, slots)

    def release(self) -> None:
        """Let go of the image of a closed run."""
        self._image = None

    # --- results -----------------------------------------------------------------------------------------------------

    def counts(self) -> FrameCounts:
        """Account as it stands."""
        return self.ledger.counts()

    def mosaic(self) -> Mosaic:
        """Image and frame log as they stand; a canvas of one empty pixel before the first frame is placed."""
        image = None if self._image is None else self._image.snapshot()
        if image is None:
            empty = np.zeros((1, 1), dtype=np.float32)
            frame = ObjectFrame((0.0, 0.0), self.documents.pixel_size_m or 1.0, (1, 1))
            image = MosaicImage(empty, empty, empty.astype(np.int32), empty, dict.fromkeys(MAPS, empty), frame)
        log, maps = self.ledger.columns(), dict(image.maps)
        if self._image is not None:
            reach_px = MAP_REACH * self._image.patch_shape[0]
            maps |= self.trust.maps(image, log, reach_px, final=self.phase is Phase.CLOSED)
        return Mosaic(
            phase_rad=image.phase_rad,
            weight=image.weight,
            coverage=image.coverage,
            variance=image.variance,
            frame=image.frame,
            run_uid=self.uid,
            frame_log=log,
            model_ids=tuple(self.models),
            maps=maps,
        )
