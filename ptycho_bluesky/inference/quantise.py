"""Eight-bit integers where they cost nothing that is seen: a search with a limit on the loss of similarity.

All convolutions are quantised at once. While the stitched image of held-out frames loses more than the limit, the layer
whose return to floating point lowers the error of the patches most is returned. A form that needs more than half of its
layers in floating point is refused.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame, crop_centre
from ptycho_bluesky.inference.cache import EngineCache
from ptycho_bluesky.inference.engine import Engine
from ptycho_bluesky.metrics import mosaic_ssim
from ptycho_bluesky.models.onnx_file import read_manifest
from ptycho_bluesky.models.quantised import QuantisedGraph
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.stitching import MosaicBuilder, weight_from_manifest

__all__ = ["MAX_SSIM_LOSS", "QuantisedModel", "accepted_form", "label_score", "quantise_model"]

logger = logging.getLogger(__name__)

MAX_SSIM_LOSS = 0.01
"""Loss of structural similarity of the stitched image from which an integer form is refused."""
MAX_FLOAT_PART = 0.5
"""Part of the layers that may stay floating point; beyond, hardly any speed is left."""
SENSITIVITY_FRAMES = 24

Score = Callable[[Engine], float]


@dataclass(frozen=True)
class QuantisedModel:
    """Outcome of a search.

    Attributes
    ----------
    content, content_all : bytes
        Model files of the last form tried, and of the one with every layer in integers.
    accepted : bool
    reason : str
        One sentence with the figures that decided.
    ssim_loss : float
        Of ``content``.
    ssim_loss_all : float
        With every layer in integers.
    float_layers : tuple of str
        Layers that stayed floating point.
    num_layers : int
    """

    content: bytes
    content_all: bytes
    accepted: bool
    reason: str
    ssim_loss: float
    ssim_loss_all: float
    float_layers: tuple[str, ...]
    num_layers: int


def label_score(labels: LabelSet, num_frames: int = 400) -> Score:
    """How well an engine's stitched phase agrees with stitched labels of a scan that was not trained on.

    Parameters
    ----------
    labels : LabelSet
    num_frames : int
        The first frames, a spiral's centre.

    Returns
    -------
    callable
        Takes an engine, answers the structural similarity by `ptycho_bluesky.metrics.mosaic_ssim`.
    """
    image, position = labels.image[:num_frames], labels.position_m[:num_frames]
    pixel = 1.0 if np.isnan(labels.pixel_size_m) else labels.pixel_size_m

    def stitch(phase: NDArray[np.float32], weight: NDArray[np.float32]) -> MosaicBuilder:
        shape = (phase.shape[1], phase.shape[2])
        builder = MosaicBuilder(ObjectFrame.around(position, shape, pixel), shape, weight)
        builder.add(phase, position)
        return builder

    def score(engine: Engine) -> float:
        weight = weight_from_manifest(engine.manifest, engine.patch_shape)
        read = np.concatenate([engine.infer(image[first : first + 32]) for first in range(0, len(image), 32)])
        truth = np.ascontiguousarray(crop_centre(labels.phase_rad[:num_frames], engine.patch_shape))
        found, wanted = stitch(read, weight).snapshot(), stitch(truth, weight).snapshot()
        return mosaic_ssim(found.phase_rad, wanted.phase_rad, found.coverage, found.weight, max_shift_px=0).ssim

    return score


def quantise_model(
    content: bytes,
    frames: NDArray,
    score: Score,
    *,
    max_ssim_loss: float = MAX_SSIM_LOSS,
    num_threads: int = 2,
    cache: EngineCache | None = None,
    progress: Callable[[str], None] | None = None,
) -> QuantisedModel:
    """Search an integer form of a model that loses no more than a limit, and remember the outcome.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    frames : ndarray, shape (n, H, W)
        Typical counts, for the ranges of the activations.
    score : callable
        Similarity of the stitched image on held-out frames, e.g. `label_score`.
    max_ssim_loss : float
    num_threads : int
    cache : EngineCache, optional
        Where an accepted form is kept; ``load_engine(…, precision="int8")`` finds it there.
    progress : callable, optional
        Told what is done.

    Returns
    -------
    QuantisedModel

    Raises
    ------
    InputError
        NNCF or OpenVINO is not installed, or does not take the model.
    """
    search = _Search(content, frames, score, num_threads, progress or logger.info)
    found = search.run(max_ssim_loss)
    model_id = hashlib.sha256(content).hexdigest()
    store = cache or EngineCache()
    if found.accepted:
        store.put_file(_file_name(model_id), found.content)
    store.put(_entry_name(model_id), {"accepted": found.accepted, "reason": found.reason, "ssim_loss": found.ssim_loss})
    return found


def accepted_form(content: bytes, cache: EngineCache) -> bytes:
    """Integer form of a model that `quantise_model` accepted.

    Raises
    ------
    InputError
        None was made, or it was refused; the message says why.
    """
    if read_manifest(content).get("quantised"):
        return content
    model_id = hashlib.sha256(content).hexdigest()
    entry = cache.get(_entry_name(model_id))
    if entry is None:
        raise InputError(
            f"model {model_id[:12]} in int8",
            "an integer form is served only after a test on held-out frames",
            "make one with ptycho_bluesky.inference.quantise.quantise_model",
        )
    if not entry.get("accepted"):
        raise InputError(f"model {model_id[:12]} in int8: {entry.get('reason')}", "", "use a floating-point precision")
    found = cache.get_file(_file_name(model_id))
    if found is None:
        raise InputError(f"model {model_id[:12]} in int8", "the cache has lost its file", "make it again")
    return found


def _entry_name(model_id: str) -> str:
    return f"int8-{model_id}"


def _file_name(model_id: str) -> str:
    return f"int8-{model_id}.onnx"


class _Search:
    def __init__(
        self, content: bytes, frames: NDArray, score: Score, num_threads: int, progress: Callable[[str], None]
    ) -> None:
        from ptycho_bluesky.inference.onnx_engine import OnnxEngine

        self._score, self._num_threads, self._progress = score, num_threads, progress
        progress("int8: single precision")
        reference = OnnxEngine(content, num_threads=num_threads)
        self._frames = frames[:: max(1, len(frames) // SENSITIVITY_FRAMES)][:SENSITIVITY_FRAMES]
        self._reference = reference.infer(self._frames)
        self._weight = weight_from_manifest(reference.manifest, reference.patch_shape)
        self._best = score(reference)
        progress("int8: ranges of the activations")
        self._graph = QuantisedGraph(content, frames)

    def run(self, max_ssim_loss: float) -> QuantisedModel:
        layers = self._graph.layers
        floats: list[str] = []
        loss = loss_all = self._loss(floats)
        order = self._by_gain() if loss > max_ssim_loss else []
        limit = int(MAX_FLOAT_PART * len(layers))
        while loss > max_ssim_loss and len(floats) < limit:
            floats.append(order[len(floats)])
            loss = self._loss(floats)
            self._progress(f"int8: {len(floats)} of {len(layers)} layers in floating point, loss {loss:.4f}")
        accepted = bool(loss <= max_ssim_loss)
        verb = "loses" if accepted else "still loses"
        reason = (
            f"with {len(layers) - len(floats)} of {len(layers)} convolutions in integers the stitched image of "
            f"held-out frames {verb} {loss:.4f} of similarity (limit {max_ssim_loss:.4g})"
        )
        content, every = self._graph.mixture(floats, ssim_loss=round(loss, 5)), self._graph.mixture()
        return QuantisedModel(content, every, accepted, reason, loss, loss_all, tuple(floats), len(layers))

    def _loss(self, floats: list[str]) -> float:
        from ptycho_bluesky.inference.openvino_engine import OpenVinoEngine

        return self._best - self._score(OpenVinoEngine(self._graph.mixture(floats), num_threads=self._num_threads))

    def _error(self, floats: list[str]) -> float:
        """Error of the patches in rad; by ONNX Runtime, which builds an engine in a tenth of the time."""
        from ptycho_bluesky.inference.onnx_engine import OnnxEngine

        engine = OnnxEngine(self._graph.mixture(floats), num_threads=self._num_threads)
        difference = engine.infer(self._frames) - self._reference
        return float(np.sqrt(np.mean((difference**2) * self._weight)))

    def _by_gain(self) -> list[str]:
        """Layers, the one first whose return to floating point lowers the error of the patches most."""
        error = {}
        for layer in self._graph.layers:
            error[layer] = self._error([layer])
            self._progress(f"int8: {layer} returned, {error[layer]:.4f} rad")
        return sorted(error, key=lambda layer: error[layer])
