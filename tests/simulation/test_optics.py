from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fft2, fftshift
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.simulation.experiment import default_geometry
from ptycho_bluesky.simulation.optics import ZonePlate, probe_diameter_m, zone_plate_probe


def test_focal_length_of_the_published_plate():
    assert ZonePlate().focal_length_m(default_geometry().wavelength_m) == pytest.approx(38.7e-3, rel=2e-3)


@pytest.mark.parametrize("size", [64, 128])
def test_probe_is_centred_has_its_photons_and_the_published_size(size):
    geometry = default_geometry(size)
    probe = zone_plate_probe(ZonePlate(), geometry, photons=2500.0)
    assert probe.dtype == np.complex64
    intensity = np.abs(probe.astype(complex)) ** 2
    assert intensity.sum() == pytest.approx(2500.0, rel=1e-5)
    index = np.arange(size)
    assert (intensity.sum(axis=1) @ index) / intensity.sum() == pytest.approx(size // 2, abs=0.05)
    assert probe_diameter_m(probe, geometry.object_pixel_m) == pytest.approx(0.8e-6, rel=0.05)


def test_far_field_of_the_empty_beam_is_the_ring_of_the_plate():
    geometry = default_geometry(128)
    plate = ZonePlate()
    far = np.abs(fftshift(fft2(zone_plate_probe(plate, geometry), unitary=True))) ** 2
    rows, cols = np.indices(far.shape) - 64
    radius_m = np.hypot(rows, cols) * geometry.detector_pixel_m
    cone = geometry.distance_m / plate.focal_length_m(geometry.wavelength_m)
    inner, outer = plate.stop_diameter_m / 2 * cone, plate.diameter_m / 2 * cone
    inside = (radius_m > inner + 1e-4) & (radius_m < outer - 1e-4)
    outside = (radius_m < inner - 1e-4) | (radius_m > outer + 1e-4)
    assert far[outside].sum() < 1e-6
    assert np.ptp(far[inside]) < 1e-3 * far[inside].mean()


def test_beam_grows_with_defocus_on_either_side():
    geometry = default_geometry(128)
    sizes = {
        z: probe_diameter_m(zone_plate_probe(ZonePlate(defocus_m=z), geometry), geometry.object_pixel_m)
        for z in (0.0, 0.1e-3, -0.1e-3, 0.19e-3)
    }
    assert sizes[0.0] < sizes[0.1e-3] < sizes[0.19e-3]
    assert sizes[0.1e-3] == pytest.approx(sizes[-0.1e-3], rel=1e-3)


def test_diameter_of_a_disc_is_known():
    rows, cols = np.indices((256, 256)) - 128
    disc = (np.hypot(rows, cols) <= 80).astype(np.complex64)
    assert probe_diameter_m(disc, 2e-9) == pytest.approx(2 * 80 * 2e-9 * np.sqrt(0.9), rel=0.01)
    assert probe_diameter_m(np.stack([disc, disc]), 1.0, 0.5) == pytest.approx(160 * np.sqrt(0.5), rel=0.01)


def test_windows_that_are_too_small_are_refused():
    with pytest.raises(InputError, match=r"1\.5 times"):
        zone_plate_probe(ZonePlate(defocus_m=0.28e-3), default_geometry(128))
    with pytest.raises(InputError, match="wider than the detector"):
        zone_plate_probe(ZonePlate(), Geometry(10e3, 0.9, 75e-6, 32))


@pytest.mark.parametrize(
    "wrong", [{"diameter_m": 0.0}, {"outer_zone_m": np.nan}, {"stop_diameter_m": 2e-4}, {"defocus_m": np.inf}]
)
def test_impossible_plates_are_refused(wrong):
    with pytest.raises(InputError):
        ZonePlate(**wrong)


def test_plate_survives_its_dictionary():
    plate = ZonePlate(defocus_m=1e-4)
    assert ZonePlate.from_dict(plate.as_dict()) == plate
