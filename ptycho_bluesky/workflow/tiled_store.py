"""What lies where in Tiled, and the only code that knows it.

``raw/<run uid>`` documents and data of runs (written by `ptycho_bluesky.workflow.writer`), ``results/<run uid>/live``
the mosaic, ``results/<run uid>/reconstruction``, ``labels/<run uid>``, ``models/<model id>``, ``decisions/<run uid>``.
The names are configurable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ptycho_bluesky._version import __version__
from ptycho_bluesky.config import TiledSettings
from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.geometry import Geometry, ObjectFrame
from ptycho_bluesky.records import FrameCounts, LabelSet, Measurement, Mosaic, Reconstruction
from ptycho_bluesky.workflow.catalogue import select_metadata
from ptycho_bluesky.workflow.client import connect, get_child, get_or_create, jsonable, reachable
from ptycho_bluesky.workflow.model_store import TiledModelStore
from ptycho_bluesky.workflow.run_reading import read_measurement
from ptycho_bluesky.workflow.run_summary import SUMMARY, RunSummary, summary_of
from ptycho_bluesky.workflow.tiled_arrays import (
    geometry_content,
    geometry_metadata,
    put_known,
    put_table,
    read_table,
    write_arrays,
)

__all__ = ["RunSummary", "StoredMosaic", "TiledStore"]

LIVE = "live"
RECONSTRUCTION = "reconstruction"
FRAME_LOG = "frame_log"
MOSAIC_ARRAYS = ("phase_rad", "weight", "coverage", "variance")


@dataclass(frozen=True)
class StoredMosaic:
    """A mosaic as stored: with its accounting, whether it is the final one, and the other metadata."""

    mosaic: Mosaic
    counts: FrameCounts
    complete: bool
    metadata: Mapping[str, Any]


class TiledStore:
    """Everything that this package reads from and writes to Tiled.

    Parameters
    ----------
    settings : TiledSettings
        Address, key and names of the containers.
    root : tiled Container
        From `TiledStore.connect`.

    Notes
    -----
    Methods raise `UnreachableError` within seconds when the server does not answer; they may be called from several
    threads, but two writers of one run's mosaic are not kept apart.
    """

    def __init__(self, settings: TiledSettings, root: Any) -> None:
        from tiled.structures.core import Spec

        self.settings, self.root = settings, root
        self.uri = settings.uri
        with reachable(self.uri):
            self.raw = get_or_create(
                root, settings.raw, {"about": "runs"}, [Spec("CatalogOfBlueskyRuns", version="3.0")]
            )
            self.results, self.labels, self.models, self.decisions = (
                get_or_create(root, name, {"about": about})
                for name, about in (
                    (settings.results, "mosaics and reconstructions by run"),
                    (settings.labels, "label sets by run"),
                    (settings.models, "models by the hash of their content"),
                    (settings.decisions, "decisions on models by run"),
                )
            )

    @classmethod
    def connect(cls, settings: TiledSettings, wait_s: float = 0.0) -> TiledStore:
        """Connect, and make the containers that are not yet there.

        Parameters
        ----------
        settings : TiledSettings
            Address, key and names of the containers.
        wait_s : float
            How long to wait for a server that does not answer yet.

        Raises
        ------
        UnreachableError
            Nothing answers at the URI.
        InputError
            The server refuses the key.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return cls(settings, connect(settings))
            except UnreachableError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.5)

    def close(self) -> None:
        """Close the connections; the store cannot be used after."""
        self.root.context.http_client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def model_store(self) -> TiledModelStore:
        """The model registry."""
        return TiledModelStore(self.models, self.uri)

    # --- runs -------------------------------------------------------------------------------------------------------

    def run(self, uid: str) -> Any:
        """Client of a run, by its uid or the beginning of it.

        Raises
        ------
        InputError
            There is no such run, or several begin so.
        """
        with reachable(self.uri):
            try:
                return self.raw[uid]
            except (KeyError, ValueError) as error:
                raise InputError(
                    f"run {uid!r}", f"Tiled at {self.uri} has no single one of that name: {error}", "check the uid"
                ) from error

    def runs(self, since_s: float | None = None) -> list[RunSummary]:
        """Runs in the order of their start, those that are still open included.

        Parameters
        ----------
        since_s : float, optional
            Only runs that started at or after this time (seconds since the epoch).
        """
        from tiled.queries import Comparison

        with reachable(self.uri):
            catalogue = self.raw
            if since_s is not None:
                catalogue = catalogue.search(Comparison("ge", "start.time", since_s))
            found = [(key, node.metadata) for key, node in catalogue.items()]
        summaries = [summary_of(key, metadata) for key, metadata in found if "start" in metadata]
        return sorted(summaries, key=lambda run: run.time_s)

    def run_summaries(self, since_s: float | None = None) -> Iterator[RunSummary]:
        """Runs in no order, those that are still open included, with no more of their documents than tells one by.

        Parameters
        ----------
        since_s : float, optional
            Only runs that started at or after this time (seconds since the epoch).

        Yields
        ------
        RunSummary
            ``start`` holds ``uid``, ``time``, ``scan_id`` and the purpose, ``stop`` its uid.
        """
        since = None if since_s is None else ("start.time", since_s)
        with reachable(self.uri):
            for key, metadata in select_metadata(self.raw, SUMMARY, since):
                if metadata and (metadata.get("start") or {}).get("uid"):
                    yield summary_of(key, metadata)

    def summary(self, uid: str) -> RunSummary | None:
        """Documents of one run, by its whole uid; None where there is no such run (now)."""
        with reachable(self.uri):
            node = get_child(self.raw, uid)
        return None if node is None or "start" not in node.metadata else summary_of(uid, node.metadata)

    def stop_uid(self, uid: str) -> str:
        """Uid of a run's stop document, "" while it has none."""
        summary = self.summary(uid)
        return "" if summary is None or not summary.stop else str(summary.stop.get("uid", ""))

    def read_run(
        self,
        uid: str,
        *,
        object_pixel_m: float | None = None,
        prefer_file: bool | None = None,
        limit: int | None = None,
        as_laid: bool = False,
    ) -> Measurement:
        """Read a run; see `ptycho_bluesky.workflow.run_reading.read_measurement` for arguments and errors."""
        run = self.run(uid)
        with reachable(self.uri):
            return read_measurement(
                run, object_pixel_m=object_pixel_m, prefer_file=prefer_file, limit=limit, as_laid=as_laid
            )

    # --- mosaics ----------------------------------------------------------------------------------------------------

    def write_mosaic(
        self,
        mosaic: Mosaic,
        counts: FrameCounts,
        *,
        complete: bool,
        geometry: Geometry | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a run's mosaic over the one before it.

        Parameters
        ----------
        mosaic : Mosaic
            ``run_uid`` names the node.
        counts : FrameCounts
            Its accounting.
        complete : bool
            Whether it is the final one; the log of frames and the variance are written with that one only, which
            keeps the writes during a scan small.
        geometry : Geometry, optional
            Stored beside it; ``unknown`` when there is none.
        metadata : mapping, optional
            More to store.
        """
        content = {
            **(metadata or {}),
            "run_uid": mosaic.run_uid,
            "counts": counts.as_dict(),
            "frame": mosaic.frame.as_dict(),
            "model_ids": list(mosaic.model_ids),
            "maps": sorted(mosaic.maps),
            "complete": complete,
            "geometry": geometry_metadata(geometry),
            "versions": {"ptycho_bluesky": __version__},
            "written_s": time.time(),
        }
        names = MOSAIC_ARRAYS if complete else ("phase_rad", "weight", "coverage")
        arrays = {name: getattr(mosaic, name) for name in names} | dict(mosaic.maps)
        with reachable(self.uri):
            live = get_or_create(get_or_create(self.results, mosaic.run_uid, {"run_uid": mosaic.run_uid}), LIVE)
            present = dict(live.items())
            for name, array in arrays.items():
                put_known(live, present, name, array)
            if complete:
                put_table(live, present, FRAME_LOG, mosaic.frame_log)
            # Last: who sees `complete` finds everything.
            live.replace_metadata(jsonable(content), drop_revision=True)

    def read_mosaic(self, uid: str) -> StoredMosaic:
        """Read a run's mosaic.

        Raises
        ------
        InputError
            There is none yet.
        """
        with reachable(self.uri):
            live = self._result(uid, LIVE, "the edge has not seen it, or has not yet written it")
            nodes, metadata = dict(live.items()), live.metadata
            if "phase_rad" not in nodes or "frame" not in metadata:
                raise InputError(f"mosaic of run {uid}", "its first version is just being written", "try again")
            array = {name: np.asarray(node.read()) for name, node in nodes.items() if name != FRAME_LOG}
            log = read_table(nodes[FRAME_LOG]) if FRAME_LOG in nodes else {}
        mosaic = Mosaic(
            phase_rad=array["phase_rad"],
            weight=array["weight"],
            coverage=array["coverage"],
            variance=array.get("variance", np.full_like(array["phase_rad"], np.nan)),
            frame=ObjectFrame.from_dict(metadata["frame"]),
            run_uid=metadata["run_uid"],
            frame_log=log,
            model_ids=tuple(metadata["model_ids"]),
            maps={name: array[name] for name in metadata.get("maps", []) if name in array},
        )
        return StoredMosaic(mosaic, FrameCounts(**metadata["counts"]), bool(metadata["complete"]), metadata)

    def has_final_mosaic(self, uid: str) -> bool:
        """Whether a run's mosaic is there and complete."""
        with reachable(self.uri):
            result = get_child(self.results, uid)
            live = None if result is None else get_child(result, LIVE)
            return live is not None and bool(live.metadata.get("complete"))

    # --- reconstructions and labels -----------------------------------------------------------------------------------

    def write_reconstruction(self, reconstruction: Reconstruction, *, pixel_size_m: float | None = None) -> None:
        """Write a reconstruction under its run; phase and amplitude stand beside the complex object for viewers."""
        content = {
            "run_uid": reconstruction.run_uid,
            "frame": reconstruction.frame.as_dict(),
            "engine": reconstruction.engine,
            "options": reconstruction.options,
            "provenance": reconstruction.provenance,
            "geometry": geometry_metadata(reconstruction.geometry),
            "pixel_size_m": pixel_size_m,
            "versions": {"ptycho_bluesky": __version__},
            "complete": True,
        }
        obj, probe = np.asarray(reconstruction.object), np.asarray(reconstruction.probe)
        arrays = {
            "object": obj.astype(np.complex64),
            "phase_rad": np.angle(obj).astype(np.float32),
            "amplitude": np.abs(obj).astype(np.float32),
            "probe": probe.astype(np.complex64),
            "probe_amplitude": np.abs(probe[0] if probe.ndim == 3 else probe).astype(np.float32),
            "position_m": np.asarray(reconstruction.position_m, dtype=np.float64),
            "error": np.asarray(reconstruction.error, dtype=np.float64),
        }
        with reachable(self.uri):
            parent = get_or_create(self.results, reconstruction.run_uid, {"run_uid": reconstruction.run_uid})
            write_arrays(get_or_create(parent, RECONSTRUCTION), arrays, content)

    def read_reconstruction(self, uid: str) -> Reconstruction:
        """Read a run's reconstruction.

        Raises
        ------
        InputError
            There is none yet.
        """
        with reachable(self.uri):
            node = self._result(uid, RECONSTRUCTION, "the worker has not yet reconstructed it")
            metadata = node.metadata
            if not metadata.get("complete"):
                raise InputError(f"reconstruction of run {uid}", "it is just being written", "try again")
            array = {
                name: np.asarray(child.read())
                for name, child in node.items()
                if name in ("object", "probe", "position_m", "error")
            }
        return Reconstruction(
            **array,
            frame=ObjectFrame.from_dict(metadata["frame"]),
            geometry=Geometry.from_dict(geometry_content(metadata["geometry"])),
            engine=metadata["engine"],
            options=metadata["options"],
            run_uid=metadata["run_uid"],
            provenance=metadata["provenance"],
        )

    def write_labels(self, labels: LabelSet) -> None:
        """Write a label set without its frames, which the run holds already."""
        content = {
            "run_uid": labels.run_uid,
            "pixel_size_m": labels.pixel_size_m,
            "geometry": geometry_metadata(labels.geometry),
            "provenance": labels.provenance,
            "versions": {"ptycho_bluesky": __version__},
            "complete": True,
        }
        arrays = {
            "phase_rad": np.asarray(labels.phase_rad, dtype=np.float32),
            "amplitude": np.asarray(labels.amplitude, dtype=np.float32),
            "position_m": np.asarray(labels.position_m, dtype=np.float64),
            "frame_index": np.asarray(labels.frame_index, dtype=np.int64),
            "probe": np.asarray(labels.probe, dtype=np.complex64),
            "weight": np.asarray(labels.weight, dtype=np.float32),
        }
        with reachable(self.uri):
            write_arrays(get_or_create(self.labels, labels.run_uid), arrays, content)

    def read_labels(self, uid: str, measurement: Measurement | None = None) -> LabelSet:
        """Read a label set and join it with the frames of its run.

        Parameters
        ----------
        uid : str
            Run.
        measurement : Measurement, optional
            The run, where it was read already.

        Raises
        ------
        InputError
            There is none, or the run lacks a frame of it.
        """
        with reachable(self.uri):
            node = get_child(self.labels, uid)
            if node is None or not node.metadata.get("complete"):
                raise InputError(f"labels of run {uid}", "there are none", "the worker makes them after the run")
            metadata = node.metadata
            array = {name: np.asarray(child.read()) for name, child in node.items()}
        measurement = measurement or self.read_run(uid)
        row = {int(index): number for number, index in enumerate(measurement.frame_index)}
        try:
            rows = np.array([row[int(index)] for index in array["frame_index"]], dtype=np.int64)
        except KeyError as error:
            raise InputError(f"labels of run {uid}", f"the run has no frame {error}", "make the labels anew") from error
        pixel = metadata.get("pixel_size_m")
        return LabelSet(
            image=np.asarray(measurement.image)[rows],
            **array,
            pixel_size_m=float("nan") if pixel is None else float(pixel),
            geometry=Geometry.from_dict(geometry_content(metadata["geometry"])),
            run_uid=metadata["run_uid"],
            provenance=metadata["provenance"],
        )

    # --- decisions ----------------------------------------------------------------------------------------------------

    def write_decision(self, uid: str, decision: Mapping[str, Any]) -> None:
        """Write what was decided on a run, over what stood there.

        Parameters
        ----------
        uid : str
            Run.
        decision : mapping
            ``outcome`` (promoted, rejected, skipped, failed), ``model_id``, ``reason``, ``figures``,
            ``stage_seconds``.
        """
        content = jsonable({"run_uid": uid, "time_s": time.time(), **decision})
        with reachable(self.uri):
            node = get_child(self.decisions, uid)
            if node is None:
                get_or_create(self.decisions, uid, content)
            else:
                node.replace_metadata(content, drop_revision=True)

    def decision(self, uid: str) -> dict[str, Any] | None:
        """What was decided on a run, None so far."""
        with reachable(self.uri):
            node = get_child(self.decisions, uid)
            return None if node is None else dict(node.metadata)

    def read_decisions(self) -> dict[str, dict[str, Any]]:
        """Every decision by its run, in the order in which they were taken."""
        with reachable(self.uri):
            found = {key: dict(node.metadata) for key, node in self.decisions.items()}
        return dict(sorted(found.items(), key=lambda item: item[1].get("time_s") or 0.0))

    def num_decisions(self) -> int:
        """How many runs were decided on."""
        with reachable(self.uri):
            return len(self.decisions)

    def decided_runs(self) -> Iterator[tuple[str, str]]:
        """Uid of every run that was decided on, and of the stop document that it had then; page by page."""
        with reachable(self.uri):
            for key, stop_uid in select_metadata(self.decisions, "stop_uid"):
                yield key, str(stop_uid or "")

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _result(self, uid: str, name: str, why: str) -> Any:
        parent = get_child(self.results, uid)
        node = None if parent is None else get_child(parent, name)
        if node is None:
            raise InputError(f"{self.settings.results}/{uid}/{name}", f"it is not in Tiled: {why}", "wait, or look")
        return node
