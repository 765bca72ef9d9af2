from __future__ import annotations

import numpy as np
import pytest
import torch
from known_scans import KnownScan, known_scan, with_plate
from test_batches import N, random_scan, random_wave

from ptycho_bluesky.metrics import phase_rms_rad
from ptycho_bluesky.reconstruction import CgOptions, reconstruct
from ptycho_bluesky.reconstruction.conjugate_gradient import ConjugateGradient, Gradient
from ptycho_bluesky.reconstruction.forward import frame_ramps, gather

FLOOR = 0.01


def engine(noise="gaussian", modes=1, masked=False, counted=None, **options):
    floors = {"poisson_floor": FLOOR, "gaussian_floor": FLOOR}
    options = CgOptions(noise=noise, **floors, dtype="complex128", probe_start=0, **options)
    scan = random_scan(masked=masked)
    return ConjugateGradient(scan, random_wave(40, 41), random_wave(modes, N, N, seed=1), options, counted)


def objective(scan, obj, probe, noise):
    """The likelihood written out, differentiable by torch."""
    ramp = frame_ramps(scan, torch.arange(len(scan)))
    wave = torch.fft.ifft2(torch.fft.fft2(probe) * ramp) * gather(obj, scan.corner, N)[:, None]
    power = (torch.fft.fft2(wave, norm="ortho").abs() ** 2).sum(dim=1)
    weight = 1.0 if scan.trusted is None else scan.trusted
    counts = scan.amplitude**2
    if noise == "gaussian":
        floor = FLOOR * counts.mean()
        return ((((power + floor).sqrt() - (counts + floor).sqrt()) ** 2) * weight).sum()
    return ((power - counts * torch.log(power + FLOOR)) * weight).sum()


@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
@pytest.mark.parametrize(("modes", "masked"), [(1, False), (2, True)])
def test_gradient_is_that_of_autograd(noise, modes, masked):
    running = engine(noise, modes, masked)
    obj, probe = running.obj.clone().requires_grad_(), running.probe.clone().requires_grad_()
    objective(running.scan, obj, probe, noise).backward()
    slope, _, _ = running.gradient(True)
    # torch gives the gradient by the real and imaginary parts, twice the one by the conjugate.
    torch.testing.assert_close(2 * slope.obj, obj.grad, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(2 * slope.probe, probe.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
def test_gradient_is_that_of_finite_differences(noise):
    running = engine(noise, 2)
    slope, _, _ = running.gradient(True)
    step = Gradient(random_wave(40, 41, seed=7), random_wave(2, N, N, seed=8))
    h = 1e-6
    values = [
        float(objective(running.scan, running.obj + s * h * step.obj, running.probe + s * h * step.probe, noise))
        for s in (1, -1)
    ]
    assert 2 * sum(slope.dot(step)) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize(("update_probe", "expected"), [(True, 3), (False, 2)])
def test_transforms_of_an_iteration(update_probe, expected):
    counted = []
    running = engine(counted=counted.append, update_probe=update_probe)
    for iteration in range(4):
        counted.clear()
        running.run_pass(iteration)
        assert sum(counted) == expected * len(running.scan)


@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
def test_every_step_descends_and_stored_fields_stay_true(noise):
    running = engine(noise, 2)
    values = []
    for iteration in range(8):
        values.append(running.gradient(True)[1])
        running.run_pass(iteration)
    assert (np.diff(values) < 0).all()
    kept = running._far.clone()
    running._see()
    torch.testing.assert_close(kept, running._far, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def small_scan() -> KnownScan:
    return known_scan(80, 75e-9)


@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
def test_known_object_is_found(small_scan, noise):
    result = reconstruct(with_plate(small_scan), CgOptions(iterations=90, noise=noise, holdout_fraction=0.0))
    truth, lit = small_scan.on(result.frame), small_scan.lit(result)
    assert phase_rms_rad(result.object, truth, lit) <= 0.02
    assert result.engine == "cg"


def test_poisson_beats_gaussian_in_low_light():
    scan = known_scan(120, 50e-9, exposure_s=7.7e-6)
    assert scan.measurement.image.sum(axis=(1, 2)).mean() == pytest.approx(1000, rel=0.1)
    errors = []
    for noise in ("poisson", "gaussian"):
        options = CgOptions(iterations=15, noise=noise, update_probe=False, holdout_fraction=0.0)
        result = reconstruct(with_plate(scan), options)
        errors.append(phase_rms_rad(result.object, scan.on(result.frame), scan.lit(result)))
    assert errors[0] < 0.9 * errors[1]
