"""Centre, bad pixels and orientation of a detector that stands anyhow, found from its own scan."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ptycho_bluesky.cli.main import build_app
from ptycho_bluesky.config import DetectorSettings, load_settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS, apply_d4, spiral_positions_m
from ptycho_bluesky.io import area_detector, read_measurement, read_reconstruction
from ptycho_bluesky.io.calibrated import as_calibrated
from ptycho_bluesky.preprocess import Canonical
from ptycho_bluesky.reconstruction.calibration import (
    defocus_of,
    find_bad_pixels,
    find_centre,
    measure_orientation,
    twin_of,
)
from ptycho_bluesky.reconstruction.options import EpieOptions
from ptycho_bluesky.reconstruction.pixel_check import FACTORS, check_pixel, lowest_factor, probe_for_pixel
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation import Experiment, RenderedScan, ZonePlate, default_geometry, demo_map

SIZE = 64
NUM = 120
GEOMETRY = default_geometry(SIZE)
QUICK = EpieOptions(iterations=12, holdout_fraction=0.1)
INVERSE = {"rot90": "rot270", "rot270": "rot90"}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    sample = demo_map(1, size_m=4e-6, pixel_size_m=GEOMETRY.object_pixel_m, seed=1, num_letters=0)
    return Experiment(GEOMETRY, ZonePlate(), sample)


@pytest.fixture(scope="module")
def scan(experiment) -> RenderedScan:
    return experiment.render(spiral_positions_m(NUM, 1e-7), 5e-3, seed=1)


def measurement(scan: RenderedScan, operation: str) -> Measurement:
    index = np.arange(NUM)
    return Measurement(
        image=np.ascontiguousarray(apply_d4(scan.image, operation)),
        position_m=scan.position_m,
        frame_index=index,
        unique_id=index,
        timestamp_s=np.full(NUM, np.nan),
        i0=scan.i0,
        geometry=GEOMETRY,
        pixel_size_m=GEOMETRY.object_pixel_m,
        run_uid="turned",
    )


@given(row=st.integers(20, 60), col=st.integers(30, 80), seed=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_a_symmetric_frame_has_its_centre_found_to_a_tenth_of_a_pixel(row, col, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:90, :110]
    shift = rng.uniform(-0.4, 0.4, 2)
    radius = np.hypot(y - row - shift[0], x - col - shift[1])
    mean = 100.0 * np.exp(-((radius - 12.0) ** 2) / 8.0)
    found = find_centre(mean)
    np.testing.assert_allclose(found.symmetry_px, (row + shift[0], col + shift[1]), atol=0.1)
    assert found.locked_px == (row, col)
    assert found.contrast > 0.95
    gap = np.zeros(mean.shape, dtype=bool)
    gap[row + 3 : row + 6] = True
    np.testing.assert_allclose(find_centre(np.where(gap, 0.0, mean), gap).symmetry_px, found.symmetry_px, atol=0.2)


def test_a_dark_frame_has_no_centre():
    with pytest.raises(InputError, match="light"):
        find_centre(np.zeros((8, 8)))


def test_hot_and_dead_pixels_are_found_and_the_beam_is_not(scan):
    mean = scan.image.mean(axis=0)
    assert not find_bad_pixels(mean).any()
    spoilt = mean.copy()
    bright = np.unravel_index(mean.argmax(), mean.shape)
    spoilt[bright] = 0.0
    spoilt[3, 4] = 5000.0
    expected = np.zeros(mean.shape, dtype=bool)
    expected[bright] = expected[3, 4] = True
    np.testing.assert_array_equal(find_bad_pixels(spoilt), expected)


def test_twins_are_a_half_turn_apart():
    assert {name: twin_of(name) for name in ("identity", "rot90", "flip_rows", "transpose")} == {
        "identity": "rot180",
        "rot90": "rot270",
        "flip_rows": "flip_cols",
        "transpose": "antitranspose",
    }
    assert all(twin_of(twin_of(name)) == name for name in D4_OPERATIONS)


def test_the_side_of_the_focus_is_found():
    for defocus_m in (1.9e-4, -1.9e-4):
        plate = replace(ZonePlate(), defocus_m=defocus_m)
        probe = Experiment.default(SIZE, plate=plate).probe[None]
        assert defocus_of(probe, GEOMETRY) == pytest.approx(defocus_m, abs=5e-5)


@pytest.mark.parametrize("operation", D4_OPERATIONS)
def test_each_of_the_eight_orientations_is_found_and_its_twin_told_apart(scan, operation):
    found = measure_orientation(measurement(scan, operation), "absorbing", options=QUICK)
    assert found.found
    assert found.operation == INVERSE.get(operation, operation)
    assert found.resolved_by == "absorbing"
    errors = list(found.errors.values())
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("defocus", [1.0, -1.0])
def test_the_side_of_the_focus_tells_the_twin(scan, defocus):
    prior = "defocus-positive" if defocus > 0 else "defocus-negative"
    found = measure_orientation(measurement(scan, "rot90"), prior, options=QUICK)
    assert found.resolved_by == prior
    # the sample stands downstream: the wrong side names the twin
    assert found.operation == ("rot270" if defocus > 0 else "rot90")


def test_the_pixel_is_measured_against_the_stage(scan):
    factor = 1.3
    right = measurement(scan, "identity")
    assert right.pixel_size_m is not None
    stated = replace(right, pixel_size_m=right.pixel_size_m / factor, geometry=None)
    found = check_pixel(stated, QUICK)
    assert found.factor == pytest.approx(factor, rel=0.015)
    assert not found.agrees
    assert set(found.errors) == set(FACTORS)
    near = min(found.near_errors, key=lambda each: found.near_errors[each])
    assert min(found.near_errors) < near < max(found.near_errors)
    assert found.near_errors[near] < min(found.errors.values())


def test_the_defocus_goes_with_the_pixel(experiment):
    """The same optics and a larger pixel: the beam has its width in metres, and its pupil."""
    probe = experiment.probe[None]
    moved = probe_for_pixel(probe, 1.1)
    pupil = [np.abs(np.fft.fft2(np.fft.ifftshift(wave, axes=(-2, -1)))) for wave in (probe, moved)]
    np.testing.assert_allclose(pupil[1], pupil[0], atol=1e-4 * pupil[0].max())
    axis = np.arange(SIZE) - SIZE // 2

    def width(wave):
        power = np.abs(wave[0]) ** 2
        return np.sqrt((power.sum(axis=0) @ axis**2) / power.sum())

    assert width(probe_for_pixel(probe, 1.25)) == pytest.approx(width(probe) / 1.25, rel=0.05)
    assert width(probe_for_pixel(probe, 0.8)) == pytest.approx(width(probe) / 0.8, rel=0.05)
    np.testing.assert_allclose(probe_for_pixel(probe, 1.0), probe, atol=1e-5 * np.abs(probe).max())


def test_the_least_error_lies_between_the_trials():
    errors = {factor: (np.log(factor) - np.log(1.02)) ** 2 + 1.0 for factor in (0.9, 0.95, 1.0, 1.05)}
    assert lowest_factor(errors) == pytest.approx(1.02, abs=1e-6)
    assert lowest_factor({0.95: 3.0, 1.0: 2.0, 1.05: 1.0}) == 1.05
    assert lowest_factor({0.95: 1.0, 1.0: 1.0, 1.05: 1.0}) in (0.95, 1.0)


def test_without_a_prior_the_twin_stays(scan):
    found = measure_orientation(measurement(scan, "transpose"))
    assert found.ambiguous
    assert {found.operation, found.twin} == {"transpose", "antitranspose"}
    with pytest.raises(InputError, match="prior"):
        measure_orientation(measurement(scan, "identity"), "feeling")  # pyright: ignore[reportArgumentType]


def test_a_calibration_locks_what_edge_and_readers_do(scan, tmp_path, monkeypatch):
    """A detector that is larger, turned, off-centre and defective gives the frames of the ideal one."""
    shape, corner = (90, 130), (17, 40)
    frames = np.zeros((NUM, *shape), dtype=np.uint16)
    inside = (slice(None), slice(corner[0], corner[0] + SIZE), slice(corner[1], corner[1] + SIZE))
    frames[inside] = apply_d4(scan.image, "rot90")
    frames[:, 50] = 65535  # a gap between modules
    frames[:, 20, 60] = 900
    path, out = tmp_path / "scan.h5", tmp_path / "calibration.yml"
    with h5py.File(path, "w", libver="latest") as file:
        datasets = area_detector.create_datasets(file, shape, np.uint16, geometry=replace(GEOMETRY, num_px=130))
        y, x = scan.position_m.T
        ids = np.arange(NUM) + 1
        area_detector.append_rows(datasets, frames, ids, position_y_m=y, position_x_m=x, i0=scan.i0)
    command = ["calibrate", str(path), "--out", str(out), "--num-px", "64", "--prior", "absorbing"]
    result = CliRunner().invoke(build_app(), command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = yaml.safe_load(out.read_text())
    assert content["detector"]["centre_px"] == [corner[0] + 32, corner[1] + 32]
    assert content["geometry"] == {"orientation": "rot270"}
    pixel = content["measured"]["pixel"]
    assert pixel["agrees"]
    assert pixel["stated_m"] == pytest.approx(GEOMETRY.object_pixel_m)
    assert content["measured"]["bad_pixels"] >= 131
    np.testing.assert_allclose(content["measured"]["centre_by_symmetry_px"], [49, 72], atol=0.2)

    monkeypatch.setenv("PTYCHO_BLUESKY_CALIBRATION", str(out))
    calibrated = load_settings()
    assert calibrated.geometry.orientation == "rot270"
    stored = read_measurement(path, detector=calibrated.detector, orientation=calibrated.geometry.orientation)
    assert stored.mask is not None
    good = stored.mask
    assert good.mean() > 0.95
    np.testing.assert_array_equal(np.asarray(stored.image)[:, good], scan.image[:, good])
    # the edge does the same from the run's documents
    from ptycho_bluesky.io.masks import stated_canonical

    canonical = stated_canonical(calibrated.detector, shape)
    edge = Canonical.from_run({"canonical": canonical, "geometry": {"orientation": "rot270"}}, shape)
    np.testing.assert_array_equal(edge(frames[:5]), np.asarray(stored.image[:5], dtype=np.float32))


def calibrate_file(path, out, *options):
    command = ["calibrate", str(path), "--out", str(out), *options]
    result = CliRunner().invoke(build_app(), command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return yaml.safe_load(out.read_text()), result.stderr


def test_files_of_other_formats_are_calibrated_and_read_so(scan, tmp_path):
    """PtychoNN's archive, turned: calibrated by hand, then reconstructed with the calibration named."""
    path, out = tmp_path / "scan.npz", tmp_path / "calibration.yml"
    turned = np.ascontiguousarray(apply_d4(scan.image, "flip_rows")).astype(np.float32)
    np.savez(path, reciprocal=turned, position=scan.position_m, pixelsize=GEOMETRY.object_pixel_m)
    content, said = calibrate_file(path, out, "--no-pixel")
    assert "geometry" not in content  # of two twins none is locked by chance
    assert content["measured"]["orientation"]["resolved_by"] == "ambiguous"
    assert "ambiguous" in said
    content, _ = calibrate_file(path, out, "--no-pixel", "--prior", "absorbing")
    assert content["detector"]["centre_px"] == [32, 32]
    assert content["geometry"] == {"orientation": "flip_rows"}
    product = tmp_path / "out.h5"
    arguments = ["--iterations", "8", "--half-scans", "0", "--no-picture"]
    errors = []
    for more in ([], ["--calibration", str(out)]):
        command = ["reconstruct", str(path), "--out", str(product), *arguments, *more]
        assert CliRunner().invoke(build_app(), command, catch_exceptions=False).exit_code == 0
        errors.append(read_reconstruction(product).error[-1])
    assert errors[1] < 0.5 * errors[0]


def test_a_cut_changes_the_pixel_that_belongs_to_the_frames(scan):
    whole = replace(measurement(scan, "identity"), probe=np.ones((1, SIZE, SIZE), dtype=np.complex64))
    detector = DetectorSettings(centre_px=(32, 32), num_px=48)
    cut = as_calibrated(whole, detector, "rot90", limit=7)
    assert cut.image.shape == (7, 48, 48)
    np.testing.assert_array_equal(cut.image, apply_d4(scan.image[:7, 8:56, 8:56], "rot90"))
    assert cut.geometry is not None
    assert cut.geometry.num_px == 48
    assert cut.geometry.orientation == "rot90"
    assert cut.pixel_size_m == pytest.approx(GEOMETRY.object_pixel_m * 64 / 48)
    assert cut.probe is None
    pixel = as_calibrated(replace(whole, geometry=None), detector)
    assert pixel.pixel_size_m == pytest.approx(GEOMETRY.object_pixel_m * 64 / 48)
    unknown = as_calibrated(replace(whole, geometry=None, pixel_size_m=None), detector)
    np.testing.assert_allclose(unknown.position_m, whole.position_m * 48 / 64)
