"""Which earlier model a new experiment starts from: frames compared with the corpora that models were trained on.

The idea of fairDMS (Ali et al., 2022): data of experiments are compared by a low-dimensional description, and the model
of the most similar data is the one to start from. Here the description is linear: the mean of the normalised amplitude
patterns tells the probe, the principal components of what frames differ by tell the sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.regime import same_geometry

__all__ = ["SCRATCH_BELOW", "Fingerprint", "Similarity", "Suggestion", "compare", "rank"]

COMPONENTS = 16
MIN_FRAMES = 8
SCRATCH_BELOW = 0.5
"""Similarity under which a start from scratch is suggested."""


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of frames to compare them with others.

    Attributes
    ----------
    geometry : dict
        ``image_shape`` and ``pixel_size_m``.
    mean : ndarray of float64, shape (H·W,)
        Mean amplitude pattern, norm 1.
    basis : ndarray of float64, shape (k, H·W)
        Principal components of the deviations, orthonormal.
    captured : float
        Part of the deviations' power that the components hold, on frames that they were not made from.
    deviations : ndarray of float64, shape (n, H·W)
        Of the frames themselves.
    """

    geometry: Mapping[str, Any]
    mean: NDArray[np.float64]
    basis: NDArray[np.float64]
    captured: float
    deviations: NDArray[np.float64]

    @classmethod
    def of(cls, image: NDArray[Any], pixel_size_m: float | None) -> Fingerprint:
        """Describe frames.

        Parameters
        ----------
        image : ndarray, shape (n, H, W)
            Canonical frames in counts.
        pixel_size_m : float, optional
            Object pixel.

        Raises
        ------
        InputError
            Fewer than eight frames with light.
        """
        lit = np.asarray(image, dtype=np.float64)
        amplitude = np.sqrt(np.maximum(lit, 0.0)).reshape(len(lit), -1)
        norm = np.linalg.norm(amplitude, axis=1)
        amplitude = amplitude[norm > 0] / norm[norm > 0, None]
        if len(amplitude) < MIN_FRAMES:
            raise InputError(f"{len(amplitude)} frames with light", f"at least {MIN_FRAMES} are compared")
        mean = amplitude.mean(axis=0)
        deviations = amplitude - mean
        # Components from every second frame, judged on the others: noise is not captured twice.
        basis = np.linalg.svd(deviations[::2], full_matrices=False)[2][:COMPONENTS]
        known = None if pixel_size_m is None or not np.isfinite(pixel_size_m) else float(pixel_size_m)
        geometry = {"image_shape": list(np.shape(image)[1:]), "pixel_size_m": known}
        held_out = deviations[1::2]
        return cls(geometry, mean / np.linalg.norm(mean), basis, _captured(basis, held_out), deviations)


def _captured(basis: NDArray[np.float64], deviations: NDArray[np.float64]) -> float:
    power = float(np.sum(deviations**2))
    return float(np.sum((deviations @ basis.T) ** 2)) / power if power > 0 else 1.0


@dataclass(frozen=True)
class Similarity:
    """How alike new frames are to those of a corpus.

    Attributes
    ----------
    probe : float
        Correlation of the mean patterns, 0 to 1.
    sample : float
        Power of the new deviations that the corpus's components hold, relative to the corpus's own; 0 to 1.
    """

    probe: float
    sample: float

    @property
    def total(self) -> float:
        """Product of both."""
        return self.probe * self.sample


def compare(new: Fingerprint, corpus: Fingerprint) -> Similarity | None:
    """Similarity of new frames with a corpus; None where the geometry is another: no model of it can read them."""
    if not same_geometry(new.geometry, corpus.geometry):
        return None
    probe = float(np.clip(new.mean @ corpus.mean, 0.0, 1.0))
    own = max(corpus.captured, 1e-12)
    return Similarity(probe, float(min(1.0, _captured(corpus.basis, new.deviations) / own)))


@dataclass(frozen=True)
class Suggestion:
    """One way to start.

    Attributes
    ----------
    model_id : str
        "" for a start from scratch.
    similarity : Similarity or None
        The best over the runs that the model was trained on; None for a start from scratch.
    run_uid : str
        Run that was most alike.
    """

    model_id: str
    similarity: Similarity | None
    run_uid: str = ""


def rank(new: Fingerprint, corpora: Mapping[str, Sequence[tuple[str, Fingerprint]]]) -> list[Suggestion]:
    """Ways to start, the best first, "from scratch" among them.

    Parameters
    ----------
    new : Fingerprint
        Of the first frames.
    corpora : mapping of str to sequence of (str, Fingerprint)
        Model ids, and for each the runs of its corpus.

    Returns
    -------
    list of Suggestion
        Models whose similarity is below `SCRATCH_BELOW` stand after the start from scratch; models of another geometry
        are left out.
    """
    found = []
    for model_id, runs in corpora.items():
        compared = [(similarity, uid) for uid, each in runs if (similarity := compare(new, each)) is not None]
        if compared:
            similarity, uid = max(compared, key=lambda item: item[0].total)
            found.append(Suggestion(model_id, similarity, uid))
    found.append(Suggestion("", None))
    return sorted(found, key=lambda each: -(SCRATCH_BELOW if each.similarity is None else each.similarity.total))
