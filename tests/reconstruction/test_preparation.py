from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from known_scans import known_scan, with_plate

from ptycho_bluesky.config import ReconstructSettings
from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.reconstruction import EpieOptions, reconstruct, starting_probe
from ptycho_bluesky.reconstruction.forward import gather, gather_indexed, scatter_add, scatter_add_indexed
from ptycho_bluesky.reconstruction.options import EngineOptions
from ptycho_bluesky.reconstruction.pictures import draw
from ptycho_bluesky.reconstruction.prepare import select_frames
from ptycho_bluesky.simulation import ZonePlate, probe_diameter_m

OPTIONS = EpieOptions(iterations=2)


def damaged(measurement, value, dtype=np.float32):
    image = measurement.image.astype(dtype)
    image[5, 3, 4] = value
    return replace(measurement, image=image)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: damaged(m, np.nan), "not finite"),
        (lambda m: damaged(m, -1.0), "negative"),
        (lambda m: damaged(m, -1, np.int32), "negative"),
        (lambda m: replace(m, image=m.image[:, :, :60]), "square"),
        (lambda m: replace(m, image=m.image[0]), "frames of shape"),
        (lambda m: replace(m, position_m=m.position_m[:-1]), "position"),
        (lambda m: replace(m, position_m=np.full_like(m.position_m, np.nan)), "0 usable frames"),
        (lambda m: replace(m, image=np.zeros_like(m.image)), "no beam"),
        (lambda m: replace(m, mask=np.ones((3, 3), dtype=bool)), "mask"),
        (lambda m: replace(m, probe=np.ones((1, 32, 32), dtype=np.complex64)), "probe of shape"),
        (lambda m: replace(m, probe=np.zeros((1, 64, 64), dtype=np.complex64)), "empty"),
        (lambda m: replace(m, pixel_size_m=-1.0), "pixel_size_m"),
    ],
)
def test_bad_measurements_are_refused(noisy_scan, change, says):
    with pytest.raises(InputError, match=says):
        reconstruct(change(with_plate(noisy_scan)), OPTIONS)


@pytest.mark.parametrize(
    "values", [{"iterations": 0}, {"alpha_object": 0}, {"holdout_fraction": 0.9}, {"dtype": "int"}, {"unknown": 1}]
)
def test_bad_options_name_their_key(values):
    with pytest.raises(InputError, match=next(iter(values))):
        EpieOptions.of(**values)


def test_options_from_settings():
    options = EpieOptions.from_settings(ReconstructSettings(iterations=7, probe_modes=2), holdout_fraction=0.1)
    assert (options.iterations, options.probe_modes, options.holdout_fraction) == (7, 2, 0.1)


def test_bad_calls_are_refused(noisy_scan):
    measurement = with_plate(noisy_scan)
    with pytest.raises(InputError, match="starting object"):
        reconstruct(measurement, OPTIONS, object=np.ones((5, 5)))
    with pytest.raises(InputError, match="rows from"):
        reconstruct(measurement, OPTIONS, rows=[0, 1, 9999])
    with pytest.raises(InputError, match="row mask"):
        reconstruct(measurement, OPTIONS, rows=np.ones(3, dtype=bool))
    with pytest.raises(InputError, match="device"):
        reconstruct(measurement, EpieOptions(iterations=1, device="abacus"))
    with pytest.raises(InputError, match="no engine"):
        reconstruct(measurement, EngineOptions(iterations=1))


def test_nan_under_the_mask_is_no_fault(noisy_scan):
    measurement = damaged(with_plate(noisy_scan), np.nan)
    mask = np.ones((64, 64), dtype=bool)
    mask[3, 4] = False
    result = reconstruct(replace(measurement, mask=mask), OPTIONS)
    assert np.isfinite(result.object).all()


def test_frames_that_cannot_be_used_are_left_out_and_counted(noisy_scan):
    measurement = noisy_scan.measurement
    position, image = measurement.position_m.copy(), measurement.image.copy()
    position[3] = np.nan
    image[8:10] = 0
    i0 = np.ones(len(image))
    i0[20] = np.nan
    selection = select_frames(replace(measurement, position_m=position, image=image, i0=i0), OPTIONS)
    assert selection.excluded == {"no position": 1, "no beam": 2, "no intensity monitor": 1}
    kept = set(selection.used.tolist()) | set(selection.held_out.tolist())
    assert kept == set(range(len(image))) - {3, 8, 9, 20}
    assert not set(selection.used.tolist()) & set(selection.held_out.tolist())


def test_held_out_frames_lie_inside_the_scan():
    scan = known_scan(200, 75e-9, exposure_s=1e-4)
    selection = select_frames(scan.measurement, EpieOptions(holdout_fraction=0.1))
    radius = np.linalg.norm(scan.measurement.position_m, axis=1)
    assert len(selection.held_out) == 20
    assert radius[selection.held_out].max() < 0.95 * radius.max()
    other = select_frames(scan.measurement, EpieOptions(holdout_fraction=0.1, seed=1))
    assert set(other.held_out.tolist()) != set(selection.held_out.tolist())


@pytest.mark.parametrize(
    ("gather", "scatter_add"), [(gather, scatter_add), (gather_indexed, scatter_add_indexed)], ids=["loop", "indexed"]
)
def test_scatter_is_the_adjoint_of_gather(gather, scatter_add):
    rng = np.random.default_rng(0)
    obj, patches = (
        torch.from_numpy(rng.standard_normal(s) + 1j * rng.standard_normal(s)) for s in ((30, 25), (6, 8, 8))
    )
    corner = rng.integers(0, 17, (6, 2))
    row, col = corner[2].tolist()
    torch.testing.assert_close(gather(obj, corner, 8)[2], obj[row : row + 8, col : col + 8])
    canvas = torch.zeros_like(obj)
    scatter_add(canvas, patches, corner)
    one = torch.vdot(gather(obj, corner, 8).reshape(-1), patches.reshape(-1))
    assert torch.vdot(obj.reshape(-1), canvas.reshape(-1)).item() == pytest.approx(one.item())


def test_probe_is_scaled_to_the_counts_and_its_source_told(noisy_scan):
    measurement = noisy_scan.measurement
    counts = measurement.image.sum(axis=(1, 2)).mean()
    given = starting_probe(measurement, probe=noisy_scan.experiment.probe)
    own = starting_probe(replace(measurement, probe=noisy_scan.experiment.probe[None]))
    plate = starting_probe(with_plate(noisy_scan), EpieOptions(probe_modes=3))
    argument = starting_probe(measurement, plate=ZonePlate())
    assert [p.source for p in (given, own, plate, argument)] == ["given", "measurement", "zone plate", "zone plate"]
    assert plate.wave.shape == (3, 64, 64)
    for probe in (given, own, plate):
        assert np.sum(np.abs(probe.wave) ** 2) == pytest.approx(counts, rel=0.02)


@pytest.mark.parametrize("defocus_m", [0.19e-3, -0.19e-3, 0.1e-3])
def test_defocus_and_its_sign_are_found_in_the_frames(defocus_m):
    scan = known_scan(220, 75e-9, exposure_s=5e-3, plate=ZonePlate(defocus_m=defocus_m))
    probe = starting_probe(scan.measurement)
    assert probe.source == "mean frame"
    found = probe_diameter_m(probe.wave, 1.0)
    true = probe_diameter_m(scan.experiment.probe, 1.0)
    assert 0.5 < found / true < 2.0
    spectrum, model = (np.fft.fft2(np.fft.ifftshift(p)) for p in (probe.wave[0], scan.experiment.probe))
    pupil = np.abs(model) > 0.3 * np.abs(model).max()
    frequency = np.fft.fftfreq(64)
    q2 = (frequency[:, None] ** 2 + frequency[None, :] ** 2)[pupil]
    # The pupil's phase curves the same way as that of the optics.
    curvature = [np.sum(np.angle(s[pupil][1:] * np.conj(s[pupil][:-1])) * np.diff(q2)) for s in (spectrum, model)]
    assert np.sign(curvature[0]) == np.sign(curvature[1])


def test_picture_is_drawn(noisy_scan, tmp_path):
    result = reconstruct(with_plate(noisy_scan), EpieOptions(iterations=2, probe_modes=2))
    path = draw(result, tmp_path / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StorageError, match="picture"):
        draw(result, tmp_path / "nowhere" / "picture.png")


def test_starting_probe_looks_at_the_chosen_rows_only(noisy_scan):
    rows = np.arange(0, 120)
    image = noisy_scan.measurement.image.copy()
    image[120:] = image[120:, ::-1, ::-1] // 3
    other = replace(noisy_scan.measurement, image=image)
    options = EpieOptions(iterations=1, holdout_fraction=0.0)
    one, two = (reconstruct(m, options, rows=rows) for m in (noisy_scan.measurement, other))
    np.testing.assert_array_equal(one.object, two.object)
    np.testing.assert_array_equal(one.probe, two.probe)
