"""What is measured of a model when it is made, so that its answers can be checked wherever it serves."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry, crop_centre
from ptycho_bluesky.models.export import from_onnx
from ptycho_bluesky.models.onnx_file import parse, set_manifest
from ptycho_bluesky.models.reader import PhaseReader
from ptycho_bluesky.training.evaluate import predict, stitch_patches
from ptycho_bluesky.trust.disagreement import disagreement
from ptycho_bluesky.trust.flags import Limits
from ptycho_bluesky.trust.light import Light
from ptycho_bluesky.trust.physics import LIT_FRACTION, PHYSICS_KEY, Physics, fit_amplitude_law
from ptycho_bluesky.trust.residual import FrameFit, ResidualMeter

__all__ = ["Labels", "attach_physics", "measure_physics", "stamp_physics"]

log = logging.getLogger(__name__)

MAX_FRAMES = 256
"""Frames that limits are measured on; they lie in a row of the scan, so that patches overlap as in a live mosaic."""
CHUNK_FRAMES = 8
CONTRAST_FRAMES = 1000
TOLERANCE_FRAMES = 16
BRIGHTNESS_STEPS = (1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 16.0)
BRIGHTNESS_LOSS = 1.25
DARK_QUANTILE = 0.25
"""Part of the pixels, those with the least light, that tell the background."""


class Labels(Protocol):
    """What is needed of labels: a `LabelSet` or `TrainingArrays`."""

    @property
    def image(self) -> NDArray[Any]:
        """Counts (n, N, N)."""
        ...

    @property
    def phase_rad(self) -> NDArray[np.float32]:
        """Phase (n, h, w)."""
        ...

    @property
    def amplitude(self) -> NDArray[np.float32]:
        """Amplitude (n, h, w)."""
        ...

    @property
    def position_m(self) -> NDArray[np.float64]:
        """Positions (n, 2)."""
        ...

    @property
    def probe(self) -> NDArray[Any]:
        """Probe (modes, N, N)."""
        ...

    @property
    def pixel_size_m(self) -> float:
        """Pixel of the labels, NaN when unknown."""
        ...

    @property
    def geometry(self) -> Geometry | None:
        """Geometry of the frames."""
        ...


def measure_physics(
    reader: PhaseReader, labels: Labels, light: Light, *, held_out: Labels | None = None
) -> Physics | None:
    """Physics of a trained network: the probe of its labels, and how its answers agree with frames.

    Parameters
    ----------
    reader : PhaseReader
        Counts in, phase out.
    labels : Labels
        That trained it; the newest run's probe is theirs.
    light : Light
        Of that run.
    held_out : Labels, optional
        Frames that it did not train on, of the same probe and light; limits come from them where there are any.

    Returns
    -------
    Physics or None
        None where labels and probe lie on different grids: nothing can be propagated.
    """
    probe = np.asarray(labels.probe, dtype=np.complex64)
    same_grid = probe.ndim == 3 and probe.shape[1:] == labels.image.shape[1:] and _object_pixel(labels)
    if not same_grid or not np.any(probe):
        log.warning("labels and probe lie on different grids: the model is stored without its physics")
        return None
    chosen = labels if held_out is None or not len(held_out.image) else held_out
    rows = slice(max(0, len(chosen.image) - MAX_FRAMES), None)  # the newest run's
    image, phase = np.asarray(chosen.image[rows]), chosen.phase_rad[rows]
    probe = _at_light(probe, image, chosen.amplitude[rows])
    power = (np.abs(probe) ** 2).sum(axis=0)
    weight = (power / power.max()).astype(np.float32)
    law = fit_amplitude_law(phase, chosen.amplitude[rows], crop_centre(weight, _shape(phase)))
    if light.mean_counts is None:
        light = Light.from_dict({**light.as_dict(), "mean_counts": float(image.sum(axis=(1, 2)).mean())})
    bare = Physics(probe, "that of the labels: no ramp, mean phase 0", law, 0.0, light)
    background = _background(bare, image, phase, chosen.amplitude[rows])
    physics = Physics(probe, bare.gauge, law, background, light)
    guess = predict(reader, image)
    meter = ResidualMeter(physics, _shape(guess))
    fit = _fit(meter, image, guess)
    floor = _fit(ResidualMeter(physics, _shape(phase)), image, phase, chosen.amplitude[rows])
    patch_weight = crop_centre(weight, _shape(guess))
    patch_weight = np.where(patch_weight >= LIT_FRACTION, patch_weight, np.float32(0.0))
    mosaic = stitch_patches(guess, chosen.position_m[rows], chosen.pixel_size_m, patch_weight)
    tolerance = _brightness_tolerance(reader, meter, image[:: max(1, len(image) // TOLERANCE_FRAMES)])
    spread = disagreement(mosaic.phase_rad, mosaic.variance, mosaic.coverage, mosaic.weight)
    figures = {
        "frames": len(image),
        "of": "training" if chosen is labels else "held out",
        "disagreement": spread if np.isfinite(spread) else None,
        "brightness_tolerance": tolerance,
    }
    for name, each in (("label", floor), ("model", fit)):
        figures[f"residual_{name}"] = _median(each.residual)
        figures[f"unexplained_{name}"] = _median(each.unexplained)
    figures["residual_flat"] = _median(fit.flat_residual)
    return Physics(
        probe,
        bare.gauge,
        law,
        background,
        light,
        Limits.of_frames(fit, spread, tolerance, _contrast(meter, labels.image)),
        figures,
    )


def _at_light(
    probe: NDArray[np.complex64], image: NDArray[Any], amplitude: NDArray[np.float32]
) -> NDArray[np.complex64]:
    """The probe in √counts of these frames, whatever unit its labels have it in."""
    power = crop_centre((np.abs(probe) ** 2).sum(axis=0), _shape(amplitude))
    through = float(np.einsum("ij,nij->", power, amplitude**2)) / len(amplitude)
    counts = float(image.sum(axis=(1, 2), dtype=np.float64).mean())
    return probe * np.float32(np.sqrt(counts / through)) if counts > 0 and through > 0 else probe


def _object_pixel(labels: Labels) -> bool:
    if labels.geometry is None or np.isnan(labels.pixel_size_m):
        return True
    return bool(np.isclose(labels.pixel_size_m, labels.geometry.object_pixel_m, rtol=1e-3, atol=0.0))


def _shape(patches: NDArray[Any]) -> tuple[int, int]:
    return int(patches.shape[1]), int(patches.shape[2])


def _fit(
    meter: ResidualMeter, image: NDArray[Any], phase: NDArray[np.float32], amplitude: NDArray[np.float32] | None = None
) -> FrameFit:
    parts = []
    for start in range(0, len(image), CHUNK_FRAMES):
        rows = slice(start, start + CHUNK_FRAMES)
        part = None if amplitude is None else amplitude[rows]
        parts.append(meter.measure(image[rows].astype(np.float32), phase[rows], amplitude=part))
    names = FrameFit.__dataclass_fields__
    return FrameFit(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _background(
    physics: Physics, image: NDArray[Any], phase: NDArray[np.float32], amplitude: NDArray[np.float32]
) -> float:
    """Counts a pixel beyond what the labels predict, where they predict least."""
    meter = ResidualMeter(physics, _shape(phase))
    expected = np.zeros(image.shape[1:], dtype=np.float64)
    for start in range(0, len(image), CHUNK_FRAMES):
        rows = slice(start, start + CHUNK_FRAMES)
        expected += meter.expected(phase[rows], amplitude[rows]).sum(axis=0, dtype=np.float64)
    expected /= len(image)
    measured = image.mean(axis=0, dtype=np.float64)
    dark = expected <= np.quantile(expected, DARK_QUANTILE)
    return max(0.0, float(measured[dark].mean() - expected[dark].mean() * measured.sum() / expected.sum()))


def _contrast(meter: ResidualMeter, image: NDArray[Any]) -> NDArray[np.float32]:
    """Contrast of frames from everywhere in the labels, dark ones aside."""
    every = max(1, len(image) // CONTRAST_FRAMES)
    chosen = range(0, len(image), every * CHUNK_FRAMES)
    parts = [meter.contrast(image[start : start + CHUNK_FRAMES].astype(np.float32)) for start in chosen]
    found = np.concatenate(parts)
    return found[np.isfinite(found)]


def _brightness_tolerance(reader: PhaseReader, meter: ResidualMeter, image: NDArray[Any]) -> float:
    """Factor by which counts may be too many or too few, of `BRIGHTNESS_STEPS`, before the network reads worse.

    Worse: the median part of the frames that it leaves unexplained rises by more than `BRIGHTNESS_LOSS`.
    """

    def unexplained(scale: float) -> float:
        value = _median(_fit(meter, image, predict(reader, image, count_scale=scale)).unexplained)
        return np.inf if value is None else value

    limit, tolerance = BRIGHTNESS_LOSS * max(unexplained(1.0), 0.02), 1.0
    for step in BRIGHTNESS_STEPS:
        if max(unexplained(step), unexplained(1.0 / step)) > limit:
            break
        tolerance = step
    return tolerance


def _median(values: NDArray[np.float32]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def attach_physics(
    manifest: dict[str, Any],
    reader: PhaseReader,
    labels: Labels,
    light: Light,
    held_out: Labels | None = None,
) -> None:
    """Add the physics of a trained network to its manifest; what cannot be measured is logged and left out."""
    try:
        physics = measure_physics(reader, labels, light, held_out=held_out)
    except InputError as error:
        log.warning("the model is stored without its physics: %s", error)
        return
    if physics is not None:
        manifest[PHYSICS_KEY] = physics.as_dict()


def stamp_physics(content: bytes, labels: Labels, light: Light, held_out: Labels | None = None) -> bytes:
    """Model file with its physics measured anew: for models made elsewhere, or whose beam has changed.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    labels : Labels
        Of the beam that the model is used with.
    light : Light
        Of these.
    held_out : Labels, optional
        See `measure_physics`.

    Raises
    ------
    InputError
        The file is not ours, or labels and probe lie on different grids.
    """
    reader, manifest = from_onnx(content)
    physics = measure_physics(reader, labels, light, held_out=held_out)
    if physics is None:
        raise InputError("labels on another grid than their probe", "waves are propagated", "cut labels at its pixel")
    model = parse(content)
    set_manifest(model, {**manifest, PHYSICS_KEY: physics.as_dict()})
    return model.SerializeToString(deterministic=True)
