"""The physics residual of a frame: what the network reads, times the probe, propagated, against the counts.

For a frame of n(q) counts and a patch O = A·exp(iφ) the expected counts are

    λ(q) = s·[ Σ_m |F{P_m·O}|²(q) + b ],    s = Σn / Σ[…]

with the unitary FFT F, the modes P_m of the probe of the model's labels, and a background b; the scale s is the one of
largest likelihood, so that the residual does not depend on how bright the frame is. The residual is the Poisson
deviance D(n, λ) over its mean E[D] if λ were true (`ptycho_bluesky.trust.deviance`): 1 is as good as shot noise allows.
What the deviance has beyond shot noise, per photon, is (D − E[D]) / 2N, the Kullback–Leibler divergence between the
measured and the predicted distribution of photons: it does not depend on the exposure, so flags are decided by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fft2, fftshift
from ptycho_bluesky.trust.deviance import expected_deviance
from ptycho_bluesky.trust.physics import Physics

__all__ = ["Filling", "FrameFit", "ResidualMeter"]

Filling = Literal["edge", "mean"]
MIN_EXPECTED = 1e-4
"""Expected counts a pixel, at the training's light, below which a prediction is not trusted to be dark."""


@dataclass(frozen=True)
class FrameFit:
    """How n frames agree with a prediction.

    Attributes
    ----------
    residual : ndarray of float32, shape (n,)
        Deviance over expected deviance; NaN for a frame without counts.
    excess : ndarray of float32, shape (n,)
        (D − E[D]) / 2N of the prediction: nats a photon that it leaves unexplained.
    flat_residual, flat_excess : ndarray of float32, shape (n,)
        The same for a patch without structure: the ceiling.
    brightness : ndarray of float32, shape (n,)
        Counts of the frame over those expected of the prediction, after the factor of its light.
    """

    residual: NDArray[np.float32]
    excess: NDArray[np.float32]
    flat_residual: NDArray[np.float32]
    flat_excess: NDArray[np.float32]
    brightness: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.residual)

    @property
    def unexplained(self) -> NDArray[np.float32]:
        """Part of what distinguishes a frame from a flat one that the prediction does not explain: 0 all, 1 nothing."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.excess / self.flat_excess).astype(np.float32)


class ResidualMeter:
    """Computes residuals for one model on frames of one mask.

    Parameters
    ----------
    physics : Physics
    patch_shape : tuple of int
        (h, w) of the network's patches, at most the probe's window; the centre ``[h//2, w//2]`` is the probe's.
    good : ndarray of bool, shape (N, N), optional
        Pixels of a frame that can be trusted; all by default.
    filling : {"edge", "mean"}
        What stands outside a patch that is smaller than the window: its nearest pixel, or its mean wave.

    Raises
    ------
    InputError
        The patch is larger than the window, or the mask of another shape.

    Notes
    -----
    Costs one FFT of N×N a mode and frame, and about as much again for the deviance.
    """

    def __init__(
        self,
        physics: Physics,
        patch_shape: tuple[int, int],
        good: NDArray[np.bool_] | None = None,
        *,
        filling: Filling = "edge",
    ) -> None:
        size = int(physics.probe.shape[-1])
        if max(patch_shape) > size:
            raise InputError(f"patches of shape {patch_shape}", f"the probe's window has {size} pixels")
        if good is not None and good.shape != (size, size):
            raise InputError(f"mask of shape {good.shape}", f"the probe's window has {size} pixels")
        self.physics, self.size, self.filling = physics, size, filling
        # alternating signs move the zero frequency of an even window to its centre, without a copy
        sign = (1.0 - 2.0 * (np.add.outer(np.arange(size), np.arange(size)) % 2)).astype(np.float32)
        self._probe = physics.probe * (sign if size % 2 == 0 else np.float32(1.0))
        self._patch_shape = (int(patch_shape[0]), int(patch_shape[1]))
        self._inside = tuple(slice(size // 2 - part // 2, size // 2 - part // 2 + part) for part in self._patch_shape)
        self._good = None if good is None or good.all() else np.asarray(good, dtype=np.float32)
        self._lit = self._inner_weight()
        self._background = np.float32(max(physics.background_counts, MIN_EXPECTED))
        self._flat = self._expected(np.ones((1, size, size), dtype=np.complex64))[0]
        self._log_flat = np.log(self._flat)
        self._flat_scales, self._flat_deviance = self._tabulate_flat()

    def _inner_weight(self) -> NDArray[np.float32]:
        power = (np.abs(self.physics.probe) ** 2).sum(axis=0)[self._inside]
        return (power / max(float(power.sum()), 1e-30)).astype(np.float32)

    def _tabulate_flat(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Expected deviance of the flat patch against the scale of its counts."""
        flat = self._flat if self._good is None else self._flat[self._good > 0]
        scales = np.geomspace(1e-4, 1e4, 81)
        return np.log(scales), np.array([float(expected_deviance(flat * s).sum(dtype=np.float64)) for s in scales])

    def wave(self, phase_rad: NDArray[np.float32], amplitude: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """Patches as complex waves (n, N, N) that fill the probe's window.

        Parameters
        ----------
        phase_rad : ndarray of float32, shape (n, h, w)
        amplitude : ndarray of float32, shape (n, h, w), optional
            By default the one that `Physics.amplitude` gives for the phase.
        """
        parts = np.empty((*phase_rad.shape, 2), dtype=np.float32)
        np.cos(phase_rad, out=parts[..., 0])
        np.sin(phase_rad, out=parts[..., 1])
        patch = parts.view(np.complex64)[..., 0]
        law = self.physics.amplitude
        if amplitude is not None:
            patch *= amplitude
        elif law.slope:
            patch *= np.exp(np.float32(law.offset) + np.float32(law.slope) * phase_rad)
        if self._patch_shape == (self.size, self.size):
            return patch
        wave = np.empty((len(patch), self.size, self.size), dtype=np.complex64)
        rows, cols = self._inside
        if self.filling == "mean":
            wave[:] = (patch * self._lit).sum(axis=(1, 2))[:, None, None]
        wave[:, rows, cols] = patch
        if self.filling == "edge":
            wave[:, : rows.start, cols], wave[:, rows.stop :, cols] = patch[:, :1], patch[:, -1:]
            wave[:, :, : cols.start] = wave[:, :, cols.start, None]
            wave[:, :, cols.stop :] = wave[:, :, cols.stop - 1, None]
        return wave

    def _expected(self, wave: NDArray[Any]) -> NDArray[np.float32]:
        """Expected counts (n, N, N) at the training's light, zero frequency at ``[N//2, N//2]``."""
        total: NDArray[np.float32] | None = None
        for mode in self._probe:
            field: NDArray[np.complex64] = fft2(wave * mode, unitary=True, overwrite=True, workers=1)
            power = np.square(field.real)
            power += np.square(field.imag)
            total = power if total is None else total + power
        assert total is not None
        if self.size % 2:
            total = fftshift(total)
        total += self._background
        return total

    def expected(
        self, phase_rad: NDArray[np.float32], amplitude: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Expected counts (n, N, N) of patches (n, h, w) at the light of the training; see `wave`."""
        return self._expected(self.wave(phase_rad, amplitude))

    def measure(
        self,
        counts: NDArray[np.float32],
        phase_rad: NDArray[np.float32],
        factor: NDArray[np.float32] | float = 1.0,
        *,
        amplitude: NDArray[np.float32] | None = None,
        unusable: NDArray[np.bool_] | None = None,
    ) -> FrameFit:
        """Compare frames with what was read in them.

        Parameters
        ----------
        counts : ndarray of float32, shape (n, N, N)
            As measured, not scaled: shot noise is that of the counts.
        phase_rad : ndarray of float32, shape (n, h, w)
        factor : ndarray of float32, shape (n,), or float
            What brings the counts to the light of the training.
        amplitude : ndarray of float32, shape (n, h, w), optional
        unusable : ndarray of bool, shape (n, N, N), optional
            Pixels to leave out, frame by frame; by default those that are not ``good``.
        """
        expected = self.expected(phase_rad, amplitude)
        keep = self._good if unusable is None else (~unusable).astype(np.float32)
        if keep is not None:
            counts, expected = counts * keep, expected * keep
        axes = (-2, -1)
        total = counts.sum(axis=axes, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            # 1 stands where nothing is compared: its logarithm is 0
            log_expected = np.log(expected if keep is None else np.where(keep > 0, expected, np.float32(1.0)))
            log_counts = np.log(np.maximum(counts, np.float32(1.0)))
            scale = total / expected.sum(axis=axes, dtype=np.float64)
            deviance = 2.0 * (_weighted(counts, log_counts - log_expected) - xlogy(total, scale))
            scaled = expected * scale[:, None, None].astype(np.float32)
            mean = expected_deviance(scaled).sum(axis=axes, dtype=np.float64)
            flat_deviance, flat_mean = self._measure_flat(counts, keep, total, log_counts)
            brightness = scale * np.asarray(factor, dtype=np.float64)
            columns = (
                np.where(total > 0, deviance / mean, np.nan),
                np.where(total > 0, (deviance - mean) / (2.0 * total), np.nan),
                np.where(total > 0, flat_deviance / flat_mean, np.nan),
                np.where(total > 0, (flat_deviance - flat_mean) / (2.0 * total), np.nan),
                brightness,
            )
        return FrameFit(*(np.asarray(column, dtype=np.float32) for column in columns))

    def contrast(self, counts: NDArray[np.float32]) -> NDArray[np.float32]:
        """`FrameFit.flat_excess` (n,) of frames (n, N, N): what distinguishes them from one without sample."""
        keep = self._good
        counts = counts if keep is None else counts * keep
        total = counts.sum(axis=(-2, -1), dtype=np.float64)
        log_counts = np.log(np.maximum(counts, np.float32(1.0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            deviance, mean = self._measure_flat(counts, keep, total, log_counts)
            return np.where(total > 0, (deviance - mean) / (2.0 * total), np.nan).astype(np.float32)

    def _measure_flat(
        self,
        counts: NDArray[np.float32],
        keep: NDArray[np.float32] | None,
        total: NDArray[np.float64],
        log_counts: NDArray[np.float32],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Deviance of a patch without structure and its mean, shape (n,): no FFT, its prediction is always the same."""
        flat = self._flat if keep is None else self._flat * keep
        scale = total / flat.sum(axis=(-2, -1), dtype=np.float64)
        log_flat = self._log_flat if keep is None else np.where(keep > 0, self._log_flat, np.float32(0.0))
        deviance = 2.0 * (_weighted(counts, log_counts - log_flat) - xlogy(total, scale))
        mean = np.interp(np.log(np.maximum(scale, 1e-30)), self._flat_scales, self._flat_deviance)
        return deviance, mean


def _weighted(counts: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Σ counts·values of each frame, shape (n,); differences of logarithms, so that single precision sums them well."""
    return np.einsum("nij,nij->n", counts, values).astype(np.float64)
