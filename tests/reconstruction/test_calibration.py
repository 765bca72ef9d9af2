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
from ptycho_bluesky.config import load_settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS, apply_d4, spiral_positions_m
from ptycho_bluesky.io import area_detector, read_measurement
from ptycho_bluesky.preprocess import Canonical
from ptycho_bluesky.reconstruction.calibration import (
    defocus_of,
    find_bad_pixels,
    find_centre,
    measure_orientation,
    twin_of,
)
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation import Experiment, RenderedScan, ZonePlate, default_geometry, demo_map

SIZE = 64
NUM = 120
GEOMETRY = default_geometry(SIZE)
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


@pytest.mark.parametrize(("operation", "prior"), [("flip_cols", "absorbing"), ("rot90", "defocus-positive")])
def test_the_orientation_is_found_and_its_twin_told_apart_by_a_prior(scan, operation, prior):
    found = measure_orientation(measurement(scan, operation), prior)
    assert found.found
    assert found.operation == INVERSE.get(operation, operation)
    assert found.resolved_by == prior
    errors = list(found.errors.values())
    assert errors[0] < 0.3 * errors[1]


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
