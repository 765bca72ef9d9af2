"""The two implementations of a mini-batch against each other, and the algebra of sub-pixel shifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_bluesky.reconstruction.batches import CpuBatches, TorchBatches
from ptycho_bluesky.reconstruction.forward import Scan
from ptycho_bluesky.reconstruction.shift_basis import ShiftBasis

N = 16


def random_scan(dtype=torch.complex128, masked=False, frames=40):
    rng = np.random.default_rng(3)
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    amplitude = torch.from_numpy(rng.uniform(0.0, 3.0, (frames, N, N))).to(real)
    trusted = torch.from_numpy(rng.random((N, N)) > 0.2) if masked else None
    if trusted is not None:
        amplitude = amplitude * trusted
    position = rng.uniform(N // 2 + 1, 40 - N // 2 - 1, (frames, 2))
    return Scan.prepare(amplitude, trusted, position, dtype)


def random_wave(*shape, dtype=torch.complex128, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).to(dtype)


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_batches_are_those_of_torch(modes, masked, threads):
    scan = random_scan(masked=masked)
    results = []
    for kind in (TorchBatches, CpuBatches):
        obj, probe = random_wave(40, 41), random_wave(modes, N, N, seed=1)
        options = (modes, threads) if kind is CpuBatches else ()
        batches = kind(scan, obj, *options)
        misfits = []
        for rows, weight in ((np.arange(17), 1.0), (np.arange(5, 40), 0.1), (np.array([3]), 0.4)):
            misfits.append(float(batches.sum(probe, rows, True)))
            batches.step_object(0.7, weight)
            batches.step_probe(probe, 0.9, weight)
        misfits.append(float(batches.sum(probe, np.arange(9), False)))
        results.append((obj, probe, misfits))
    (obj, probe, misfits), (compiled_obj, compiled_probe, compiled_misfits) = results
    torch.testing.assert_close(compiled_obj, obj, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(compiled_probe, probe, rtol=1e-10, atol=1e-10)
    assert compiled_misfits == pytest.approx(misfits, rel=1e-10)


def test_single_precision_is_near_double():
    probe = random_wave(1, N, N, seed=1)
    objects = []
    for dtype in (torch.complex64, torch.complex128):
        obj = random_wave(40, 40, dtype=dtype)
        batches = CpuBatches(random_scan(dtype), obj, 1)
        batches.sum(probe.to(dtype), np.arange(30), False)
        batches.step_object(1.0, 1.0)
        objects.append(obj.to(torch.complex128))
    torch.testing.assert_close(objects[0], objects[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 2e-4), (torch.complex128, 1e-12)])
def test_shift_basis_shifts_exactly_and_has_its_adjoint(dtype, tolerance):
    rest = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2))
    wave = random_wave(2, N, N, dtype=dtype)
    basis = ShiftBasis(rest, N, wave)
    shifted = basis.shifted(basis.fields(wave), slice(0, 20))
    frequency = np.fft.fftfreq(N)
    turn = rest[:, 0, None, None] * frequency[:, None] + rest[:, 1, None, None] * frequency
    expected = np.fft.ifft2(np.fft.fft2(wave.numpy()) * np.exp(-2j * np.pi * turn)[:, None])
    np.testing.assert_allclose(shifted.numpy(), expected, atol=tolerance * np.abs(expected).max())
    others = random_wave(20, 2, N, N, dtype=dtype, seed=5)
    back = basis.combine(basis.collect(others, slice(0, 20)))
    left = np.vdot(others.numpy(), shifted.numpy())
    assert np.vdot(back.numpy(), wave.numpy()) == pytest.approx(left, rel=1e-4)
