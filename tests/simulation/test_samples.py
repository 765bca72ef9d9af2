from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.simulation import samples
from ptycho_bluesky.simulation.experiment import default_geometry
from ptycho_bluesky.simulation.optics import ZonePlate, probe_diameter_m, zone_plate_probe
from ptycho_bluesky.simulation.sample_map import Area, SampleMap, demo_map

PIXEL_M = 25e-9


def test_random_shapes_are_reproducible_and_fill_what_they_should():
    one, again, other = (samples.random_shapes((120, 90), seed=s) for s in (3, 3, 4))
    assert one.shape == (120, 90)
    assert one.dtype == np.float32
    assert (one == again).all()
    assert (one != other).any()
    assert 0.45 <= np.count_nonzero(one) / one.size < 0.65
    assert one.min() == 0.0
    assert one.max() <= 1.0
    # Shapes are 0.6 to 1 deep; only their soft edges are shallower.
    assert (one[one > 0] >= 0.6).mean() > 0.7


def test_random_shapes_without_fill_are_empty():
    assert not samples.random_shapes((20, 20), fill=0.0).any()


def test_letters_repeat_the_text_and_differ_by_seed():
    text = samples.letters((100, 100), text="PTYCHO", height_px=20)
    assert text.max() == pytest.approx(1.0)
    assert 0.1 < text.mean() < 0.5
    assert (samples.letters((100, 100), seed=1) != samples.letters((100, 100), seed=2)).any()
    # One letter stands at its line's height.
    single = samples.letters((40, 20), text="I", height_px=20)[:27]
    rows = np.flatnonzero(single.max(axis=1) > 0.5)
    assert 18 <= rows[-1] - rows[0] + 1 <= 24


def test_star_has_its_spokes():
    star = samples.siemens_star((200, 200), num_spokes=16)
    angle = np.linspace(0, 2 * np.pi, 3600, endpoint=False)
    radius = 60
    ring = (
        star[np.rint(100 + radius * np.sin(angle)).astype(int), np.rint(100 + radius * np.cos(angle)).astype(int)] > 0.5
    )
    assert np.count_nonzero(np.diff(ring.astype(int)) == 1) + int(ring[0] and not ring[-1]) == 16
    assert not star[:3].any()


def test_image_file_is_stretched_to_the_area(tmp_path):
    gradient = np.tile(np.arange(0, 60000, 1000, dtype=np.uint16), (30, 1))
    Image.fromarray(gradient).save(tmp_path / "gradient.png")
    level = samples.from_image((40, 120), tmp_path / "gradient.png")
    assert level.shape == (40, 120)
    assert level.min() == 0.0
    assert level.max() == 1.0
    assert (np.diff(level[20]) >= -1e-6).all()


def test_image_files_that_show_nothing_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match="must be an image file"):
        samples.from_image((10, 10), tmp_path / "text.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "flat.png")
    with pytest.raises(InputError, match="one grey level"):
        samples.from_image((10, 10), tmp_path / "flat.png")


def test_transmission_from_stated_phase_and_amplitude():
    wave = samples.transmission(np.array([[0.0, 0.5, 1.0]], np.float32), max_phase_rad=-0.8, min_amplitude=0.81)
    assert wave.dtype == np.complex64
    np.testing.assert_allclose(np.angle(wave), [[0, -0.4, -0.8]], atol=1e-6)
    np.testing.assert_allclose(np.abs(wave), [[1, 0.9, 0.81]], rtol=1e-6)


def test_transmission_of_tungsten_agrees_with_the_default():
    wavelength_m = default_geometry().wavelength_m
    wave = samples.transmission_from_material(np.array([[0.6e-6]]), 3.3e-5, 3.5e-6, wavelength_m)
    assert np.angle(wave)[0, 0] == pytest.approx(-1.0, abs=0.01)
    assert np.abs(wave)[0, 0] == pytest.approx(0.9, abs=0.005)


def test_map_is_rebuilt_exactly_from_json():
    sample = demo_map(2, size_m=1.5e-6, pixel_size_m=PIXEL_M, seed=5, text="ab")
    again = SampleMap.from_dict(json.loads(json.dumps(sample.as_dict())))
    assert again == sample
    one, frame = sample.object()
    other, other_frame = again.object()
    assert frame == other_frame
    assert (one == other).all()


@pytest.mark.parametrize("size", [64, 128])
def test_demo_areas_are_more_than_a_probe_apart_on_plain_membrane(size):
    geometry = default_geometry(size)
    sample = demo_map(3, size_m=3e-6, pixel_size_m=geometry.object_pixel_m)
    diameter_m = probe_diameter_m(zone_plate_probe(ZonePlate(), geometry), geometry.object_pixel_m)
    assert sample.smallest_gap_m() > geometry.window_m > diameter_m
    wave, frame = sample.object()
    rows, cols = np.indices(frame.shape)
    position = frame.to_m(np.stack([rows, cols], axis=-1))
    patterned = np.zeros(frame.shape, dtype=bool)
    for area in sample.areas:
        inside = (np.abs(position - area.centre_m) <= area.size_m / 2 + frame.pixel_size_m).all(axis=-1)
        assert (np.angle(wave[inside]) < -0.3).mean() > 0.2, area.name
        patterned |= inside
    assert (wave[~patterned] == 1).all()
    assert [area.name for area in sample.areas] == ["shapes-0", "shapes-1", "shapes-2", "letters-0"]


def test_areas_of_every_kind_stand_side_by_side(tmp_path):
    Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (100, 1))).save(tmp_path / "ramp.png")
    areas = (
        Area("star", (0.0, -1e-6), 1e-6),
        Area("image", (0.0, 1e-6), 1e-6, path=str(tmp_path / "ramp.png")),
    )
    wave, frame = SampleMap(areas, PIXEL_M).object()
    phase = np.angle(wave)
    (_, star_col), (row, image_col) = np.rint(frame.to_px([a.centre_m for a in areas])).astype(int)
    spokes = phase[row - 15 : row + 15, star_col - 15 : star_col + 15]
    assert (spokes < -0.9).any()
    assert (spokes > -0.1).any()
    line = phase[row, image_col - 19 : image_col + 19]
    assert (np.diff(line) < 0).all()
    assert line[-1] < -0.9


def test_gap_of_overlapping_and_of_single_areas():
    one = Area("shapes", (0.0, 0.0), 1e-6)
    assert SampleMap((one,), PIXEL_M).smallest_gap_m() == np.inf
    assert SampleMap((one, Area("star", (0.0, 0.5e-6), 1e-6)), PIXEL_M).smallest_gap_m() < 0
    assert SampleMap((one, Area("star", (4e-6, 5e-6), 1e-6)), PIXEL_M).smallest_gap_m() == pytest.approx(5e-6)


@pytest.mark.parametrize(
    "content",
    [
        {"areas": [], "pixel_size_m": 1e-8},
        {"areas": [{"kind": "holes", "centre_m": [0, 0], "size_m": 1e-6}], "pixel_size_m": 1e-8},
        {"areas": [{"kind": "image", "centre_m": [0, 0], "size_m": 1e-6}], "pixel_size_m": 1e-8},
        {"areas": [{"kind": "star", "centre_m": [0, 0, 0], "size_m": 1e-6}], "pixel_size_m": 1e-8},
        {"areas": [{"kind": "star", "centre_m": [0, 0], "size_m": -1}], "pixel_size_m": 1e-8},
        {"areas": [{"kind": "star", "centre_m": [0, 0], "size_m": 1e-6}], "pixel_size_m": 0},
        {"areas": [{"kind": "star", "centre_m": [0, 0], "size_m": 1e-6}], "pixel_size_m": 1e-8, "colour": 1},
        {"pixel_size_m": 1e-8},
    ],
)
def test_wrong_descriptions_are_refused(content):
    with pytest.raises(InputError):
        SampleMap.from_dict(content)


@pytest.mark.parametrize(
    "call",
    [
        lambda: samples.random_shapes((0, 5)),
        lambda: samples.random_shapes((5, 5), feature_px=(5, 2)),
        lambda: samples.random_shapes((5, 5), fill=1.0),
        lambda: samples.random_shapes((5, 5), depth=(0.5, 2.0)),
        lambda: samples.letters((5, 5), height_px=0),
        lambda: samples.siemens_star((5, 5), num_spokes=0),
        lambda: samples.transmission(np.zeros((2, 2), np.float32), min_amplitude=0.0),
        lambda: samples.transmission_from_material(np.zeros((2, 2)), 1e-5, -1e-6, 1e-10),
        lambda: demo_map(0, num_letters=0, pixel_size_m=1e-8),
    ],
)
def test_impossible_samples_are_refused(call):
    with pytest.raises(InputError):
        call()
