"""Figures of a network on labels that it did not train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame, crop_centre
from ptycho_bluesky.metrics import mosaic_ssim, pearson
from ptycho_bluesky.models.export import from_onnx
from ptycho_bluesky.models.reader import PhaseReader
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.stitching.mosaic import MosaicBuilder, MosaicImage
from ptycho_bluesky.training.symmetry import illumination
from ptycho_bluesky.trust.light import Light, LightScale
from ptycho_bluesky.trust.physics import read_physics

__all__ = ["count_scale_for", "evaluate", "label_weight", "predict", "stitch_patches"]

LIT_FRACTION = 0.1
"""Part of the beam's highest intensity from which a pixel of a patch counts as lit."""


def label_weight(labels: LabelSet | Any) -> NDArray[np.float32]:
    """Weight (h, w) of a patch's pixels: the beam's intensity relative to its highest, where the labels have its grid.

    Labels resampled to another grid than the probe's carry their own area of validity, which is used then.
    """
    patch_shape = labels.phase_rad.shape[1:]
    if np.shape(labels.probe)[-2:] == patch_shape:
        weight = illumination(labels.probe)
    else:
        weight = np.asarray(labels.weight, dtype=np.float64)
    if weight.shape != patch_shape or not weight.max() > 0:
        raise InputError(f"weight of shape {weight.shape} for patches {patch_shape}", "labels need a lit area")
    return (weight / weight.max()).astype(np.float32)


def count_scale_for(manifest: Mapping[str, Any], labels: LabelSet) -> float:
    """Factor that brings the counts of labels to the light that a model was trained with, as the edge does it.

    Parameters
    ----------
    manifest : mapping
        Of the model.
    labels : LabelSet
        ``provenance["light"]`` tells their light.

    Returns
    -------
    float
        1 where the light of either is not known.
    """
    physics, _ = read_physics(manifest)
    light = Light.from_dict(labels.provenance.get("light"))
    if physics is None or not labels.provenance.get("light"):
        return 1.0
    i0 = np.array([np.nan if light.i0 is None else light.i0])
    return float(LightScale(physics.light, light).factors(i0)[0][0])


def predict(reader: PhaseReader, image: NDArray[Any], *, batch_size: int = 32, count_scale: float = 1.0) -> NDArray:
    """Read frames (n, H, W) in counts to phase (n, h, w) float32, on the reader's device, in batches."""
    reader.eval()
    weights = next(reader.parameters())
    chunks = []
    with torch.inference_mode():
        for start in range(0, len(image), batch_size):
            counts = np.asarray(image[start : start + batch_size], dtype=np.float32)[:, None]
            chunks.append(reader(torch.from_numpy(counts).to(weights), count_scale)[:, 0].float().cpu().numpy())
    return np.concatenate(chunks)


def stitch_patches(
    phase_rad: NDArray[np.float32], position_m: NDArray[np.float64], pixel_size_m: float, weight: NDArray[np.float32]
) -> MosaicImage:
    """Stitch patches (n, h, w) at positions (n, 2): the weighted mean of exp(iφ), as the edge does it."""
    pixel = 1.0 if np.isnan(pixel_size_m) else pixel_size_m
    shape = (phase_rad.shape[1], phase_rad.shape[2])
    builder = MosaicBuilder(ObjectFrame.around(position_m, shape, pixel), shape, weight)
    builder.add(np.asarray(phase_rad, dtype=np.float32), position_m)
    return builder.snapshot()


def evaluate(
    model: bytes | PhaseReader, labels: LabelSet, *, num_frames: int | None = None, count_scale: float = 1.0
) -> dict[str, Any]:
    """Compare what a network reads with labels, frame by frame and stitched.

    Parameters
    ----------
    model : bytes or PhaseReader
        Model file, or the network itself. With a file, whose manifest tells the light of its training, the counts of
        the labels are brought to that light first.
    labels : LabelSet
        Of a run, or an area, that the network did not train on; of labels larger than the network's patch, the centre
        counts.
    num_frames : int, optional
        Use the first frames only (a spiral's first frames are its centre, so the area stays whole).
    count_scale : float
        Factor of the counts for a network itself; for a file it is found by its manifest.

    Returns
    -------
    dict
        ``score`` (structural similarity of the two stitched images, by `ptycho_bluesky.metrics.mosaic_ssim`),
        ``constant`` (what a constant image scores), ``l1_rad`` (mean absolute phase error, weighted by illumination,
        the constant of the whole set removed), ``pearson`` (of patches, lit pixels; 0 for a network that answers a
        constant), ``frames``.

    Raises
    ------
    InputError
        Frames of another shape than the model's, or labels smaller than its patches.
    """
    if isinstance(model, bytes):
        model, manifest = from_onnx(model)
        count_scale = count_scale_for(manifest, labels)
    image, position = labels.image[:num_frames], labels.position_m[:num_frames]
    guess = predict(model, image, count_scale=count_scale)
    patch_shape = (guess.shape[1], guess.shape[2])
    truth = crop_centre(labels.phase_rad[:num_frames], patch_shape)
    weight = crop_centre(label_weight(labels), patch_shape)
    lit = weight >= LIT_FRACTION
    error = guess - truth
    error = np.abs(error - np.median(error[:, lit]))
    stitched, reference = (stitch_patches(p, position, labels.pixel_size_m, weight) for p in (guess, truth))
    light = stitch_patches(np.zeros_like(truth), position, labels.pixel_size_m, np.where(lit, weight, 0.0))
    correlation = pearson(guess[:, lit], truth[:, lit])
    ssim = mosaic_ssim(stitched.phase_rad, reference.phase_rad, light.coverage, light.weight, max_shift_px=0)
    return {
        "score": ssim.ssim,
        "constant": ssim.constant,
        "l1_rad": float((error * weight).sum() / (weight.sum() * len(error))),
        "pearson": 0.0 if np.isnan(correlation) else correlation,
        "frames": len(guess),
    }
