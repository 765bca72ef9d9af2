from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from scan_files import GEOMETRY, write_area_detector, write_cxi, write_nxcxi, write_ptychonn, write_tike

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fft2, fftshift, fourier_shift, ifft2
from ptycho_bluesky.geometry import apply_d4
from ptycho_bluesky.io import read_measurement, validate_measurement
from ptycho_bluesky.simulation.forward import diffract

WRITERS = {
    "scan.cxi": write_cxi,
    "scan.nxs": write_nxcxi,
    "scan.h5": write_area_detector,
    "scan.npz": write_tike,
    "scan.npz.bz2": write_tike,
    "trained.npz": write_ptychonn,
}
PIXEL_STATED = {"scan.npz", "scan.npz.bz2"}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path, scan):
    options = {"object_pixel_m": GEOMETRY.object_pixel_m} if request.param in PIXEL_STATED else {}
    return WRITERS[request.param](tmp_path / request.param, scan), options


def test_every_format_gives_the_same_scan(written, scan):
    path, options = written
    measurement = read_measurement(path, **options)
    trusted = np.ones(scan.image.shape[1:], bool) if measurement.mask is None else measurement.mask
    np.testing.assert_array_equal(measurement.image[:, trusted], scan.image[:, trusted])
    np.testing.assert_allclose(measurement.position_m, scan.position_m, atol=1e-12)
    assert measurement.pixel_size_m == pytest.approx(GEOMETRY.object_pixel_m, rel=1e-9)
    assert measurement.run_uid == path.name
    assert measurement.frame_index.tolist() == list(range(12))


def test_every_format_agrees_with_the_forward_model(written, scan):
    """Orientation, centre and signs at once: the frames are those of the object at the positions."""
    path, options = written
    measurement = read_measurement(path, **options)
    obj, frame = scan.experiment.truth()
    expected = diffract(scan.probe, obj, frame.to_px(measurement.position_m)) * scan.i0[:, None, None]
    error = np.sum((np.sqrt(measurement.image) - np.sqrt(expected)) ** 2) / np.sum(expected)
    assert error < 0.02
    assert np.sum((np.sqrt(measurement.image) - np.sqrt(np.roll(expected, 3, axis=0))) ** 2) / np.sum(expected) > 0.02


def test_limit_reads_the_first_frames(written, scan):
    path, options = written
    measurement = read_measurement(path, limit=4, **options)
    assert len(measurement) == 4
    np.testing.assert_allclose(measurement.position_m, scan.position_m[:4], atol=1e-12)


@pytest.mark.parametrize("name", ["scan.cxi", "scan.nxs", "scan.h5"])
def test_geometry_is_read_in_whatever_unit(name, tmp_path, scan):
    geometry = read_measurement(WRITERS[name](tmp_path / name, scan)).geometry
    assert geometry is not None
    for key, value in GEOMETRY.as_dict().items():
        assert getattr(geometry, key) == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9)), key


def test_cxi_mask_says_which_pixels_count(tmp_path, scan):
    measurement = read_measurement(write_cxi(tmp_path / "scan.cxi", scan))
    assert np.argwhere(~measurement.mask).tolist() == [[3, 5]]
    assert not measurement.image[:, 3, 5].any()


def test_starting_probe_has_the_light_of_the_frames(tmp_path, scan):
    measurement = read_measurement(write_cxi(tmp_path / "scan.cxi", scan))
    assert measurement.probe.shape == (1, 64, 64)
    power = np.sum(np.abs(measurement.probe) ** 2)
    assert power == pytest.approx(measurement.image.sum(axis=(1, 2)).mean(), rel=1e-4)


def test_nexus_detector_is_cut_about_its_beam_centre(tmp_path, scan):
    measurement = read_measurement(write_nxcxi(tmp_path / "scan.nxs", scan))
    assert measurement.image.shape == (12, 64, 64)
    assert measurement.metadata["cut_from"] == [66, 90]


def test_rasters_are_flattened(tmp_path, scan):
    path = write_cxi(tmp_path / "scan.cxi", scan)
    with h5py.File(path, "r+") as file:
        del file["/entry_1/instrument_1/detector_1/data"]
        file["/entry_1/instrument_1/detector_1/data"] = scan.image.reshape(3, 4, 64, 64)
    assert len(read_measurement(path)) == 12
    assert len(read_measurement(path, limit=5)) == 5


def test_unknown_geometry_stays_unknown(tmp_path, scan):
    measurement = read_measurement(write_tike(tmp_path / "scan.npz", scan))
    assert measurement.geometry is None
    assert measurement.pixel_size_m is None
    assert measurement.metadata["geometry"] == "unknown"
    np.testing.assert_allclose(measurement.position_m, scan.position_m / GEOMETRY.object_pixel_m, atol=1e-4)


def test_stated_geometry_wins_over_the_file(tmp_path, scan):
    path = write_cxi(tmp_path / "scan.cxi", scan)
    assert read_measurement(path, distance_m=1.8).pixel_size_m == pytest.approx(2 * GEOMETRY.object_pixel_m)
    stated = read_measurement(path, object_pixel_m=5e-9)
    assert stated.pixel_size_m == 5e-9
    assert stated.geometry is None
    full = read_measurement(
        write_tike(tmp_path / "scan.npz", scan), energy_eV=10e3, distance_m=0.9, detector_pixel_m=75e-6
    )
    assert full.geometry == GEOMETRY
    np.testing.assert_allclose(full.position_m, scan.position_m, atol=1e-12)


def test_signs_of_the_stage_are_stated_not_guessed(tmp_path, scan):
    measurement = read_measurement(write_cxi(tmp_path / "scan.cxi", scan), position_signs=(-1, 1))
    np.testing.assert_allclose(measurement.position_m, scan.position_m * (-1, 1), atol=1e-12)
    assert measurement.metadata["position_signs"] == [-1, 1]
    with pytest.raises(InputError, match="each is 1 or -1"):
        read_measurement(tmp_path / "scan.cxi", position_signs=(0, 1))


def test_detector_that_lies_turned_is_turned_back(tmp_path, scan):
    turned = replace(scan, image=apply_d4(scan.image, "rot90"))
    path = write_area_detector(tmp_path / "scan.h5", turned, replace(GEOMETRY, orientation="rot270"))
    measurement = read_measurement(path)
    np.testing.assert_array_equal(measurement.image, scan.image)
    assert measurement.geometry.orientation == "rot270"


def test_positions_of_another_beamlines_names(tmp_path, scan):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["/entry/data/data"] = scan.image
        for axis, column in (("Y", 0), ("X", 1)):
            file[f"/entry/instrument/NDAttributes/Piezo{axis}"] = scan.position_m[:, column] * 1e6
            file[f"/entry/instrument/NDAttributes/Piezo{axis}"].attrs["units"] = "um"
    names = ("/entry/instrument/NDAttributes/PiezoY", "/entry/instrument/NDAttributes/PiezoX")
    measurement = read_measurement(path, position_datasets=names, object_pixel_m=GEOMETRY.object_pixel_m)
    np.testing.assert_allclose(measurement.position_m, scan.position_m, atol=1e-12)
    with pytest.raises(InputError, match="every frame has a position"):
        read_measurement(path, object_pixel_m=1e-8)
    with h5py.File(path, "r+") as file:
        del file[names[0]].attrs["units"]
    with pytest.raises(InputError, match="units are never guessed"):
        read_measurement(path, position_datasets=names, object_pixel_m=1e-8)


def change_npz(path, source, **changes):
    write_tike(path, source)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, change in changes.items():
        value = change(arrays.pop(name))
        if value is not None:
            arrays[name] = value
    np.savez(path, **arrays)
    return path


def one_bad(value):
    def change(array):
        array = array.copy()
        array[0, 2, ..., 1] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": one_bad(np.nan)}, "not finite"),
        ({"data": one_bad(-1.0)}, "frame 2 and its neighbours are negative"),
        ({"data": lambda d: d[..., :60]}, "square"),
        ({"data": lambda d: d[0, 0]}, "one axis of frames"),
        ({"data": lambda d: d.astype(complex)}, "real numbers"),
        ({"data": lambda d: d[:, :0]}, "at least one"),
        ({"scan": lambda _: None}, "known layouts"),
        ({"scan": lambda s: s[:, :9]}, "9 positions for 12 frames"),
        ({"scan": one_bad(np.nan)}, "first that of frame 2"),
        ({"scan": lambda s: s[..., :1]}, r"position is \(y, x\)"),
        ({"probe": lambda p: p * np.nan}, "probe"),
        ({"probe": lambda p: p[..., :32, :32]}, "probe of shape"),
        ({"data": lambda d: np.array([{}], dtype=object)}, "without pickled objects"),
    ],
)
def test_bad_content_is_named(tmp_path, scan, changes, message):
    path = change_npz(tmp_path / "scan.npz", scan, **changes)
    with pytest.raises(InputError, match=message):
        read_measurement(path)


def test_more_positions_than_frames_are_noted(tmp_path, scan):
    path = change_npz(tmp_path / "scan.npz", scan, data=lambda d: d[:, :10])
    measurement = read_measurement(path)
    assert len(measurement.position_m) == 10
    assert measurement.metadata["positions_without_frame"] == 2


def test_masked_pixels_may_hold_anything(tmp_path, scan):
    measurement = read_measurement(write_tike(tmp_path / "scan.npz", scan))
    image = measurement.image.copy()
    image[:, 7, 7] = np.nan
    with pytest.raises(InputError, match="not finite"):
        validate_measurement(replace(measurement, image=image))
    mask = np.ones((64, 64), bool)
    mask[7, 7] = False
    validate_measurement(replace(measurement, image=image, mask=mask))


@pytest.mark.parametrize(
    "changes",
    [
        {"i0": np.ones(3)},
        {"frame_index": np.zeros(12, int)},
        {"mask": np.ones((3, 3), bool)},
        {"probe": np.ones((64, 64))},
        {"geometry": GEOMETRY.__class__(1e4, 1.0, 1e-4, 128)},
        {"position_m": np.zeros((12, 3))},
    ],
)
def test_measurements_that_do_not_fit_together_are_refused(tmp_path, scan, changes):
    measurement = read_measurement(write_tike(tmp_path / "scan.npz", scan))
    with pytest.raises(InputError):
        validate_measurement(replace(measurement, **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy_eV": 1e4}, "stated in part"),
        ({"object_pixel_m": -1.0}, "positive"),
        (
            {"energy_eV": 1e4, "distance_m": 0.9, "detector_pixel_m": 75e-6, "object_pixel_m": 1e-9},
            "state one of the two",
        ),
        ({"limit": 0}, "at least one frame"),
    ],
)
def test_wrong_statements_are_refused(tmp_path, scan, options, message):
    with pytest.raises(InputError, match=message):
        read_measurement(write_tike(tmp_path / "scan.npz", scan), **options)


def test_metres_without_a_pixel_are_refused(tmp_path, scan):
    path = write_area_detector(tmp_path / "scan.h5", scan, geometry=None)
    with pytest.raises(InputError, match="never invented"):
        read_measurement(path)
    assert read_measurement(path, object_pixel_m=1e-8).pixel_size_m == 1e-8


def test_files_that_are_no_scans_are_refused(tmp_path):
    for name, content in (
        ("none.h5", None),
        ("text.cxi", b"hello"),
        ("cut.npz", b"PK\x03\x04rubbish"),
        ("cut.npz.bz2", b"BZh9rubbish"),
        ("cut.h5", b"\x89HDF\r\n\x1a\nrubbish"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError):
            read_measurement(path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(InputError, match="frames in"):
        read_measurement(tmp_path / "other.h5")


def gradient_descent(measurement, rows, passes=4):
    """A few passes of ePIE on some frames: enough to tell whether positions and frames belong together."""
    position = measurement.position_m[rows] - measurement.position_m[rows].min(axis=0) + 80
    whole = np.rint(position).astype(int)
    amplitude = np.sqrt(measurement.image[rows])
    probe = measurement.probe[0].astype(complex)
    size = probe.shape[-1]
    obj = np.ones(whole.max(axis=0) + size, complex)
    for step in range(passes):
        error = 0.0
        for k, (row, col) in enumerate(whole - size // 2):
            window = np.s_[row : row + size, col : col + size]
            part = position[k] - whole[k]
            shifted = fourier_shift(probe, part)
            wave = shifted * obj[window]
            far = fftshift(fft2(wave, unitary=True))
            error += np.sum((np.abs(far) - amplitude[k]) ** 2)
            projected = amplitude[k] * np.exp(1j * np.angle(far))
            change = ifft2(np.fft.ifftshift(projected), unitary=True) - wave
            patch = obj[window].copy()
            obj[window] += np.conj(shifted) / (np.abs(shifted) ** 2).max() * change
            if step:
                probe = probe + fourier_shift(np.conj(patch) / (np.abs(patch) ** 2).max() * change, -part)
    return error / np.sum(amplitude**2)


def test_real_scan_is_read_as_it_was_measured(shared_data):
    """Of the orientations of the positions only the one as read lets the frames agree with one object."""
    star = read_measurement(shared_data / "siemens-star-small.npz.bz2")
    assert star.image.shape == (516, 128, 128)
    assert star.geometry is None
    mean = star.image.mean(axis=0)
    centre = [(mean * axis).sum() / mean.sum() for axis in np.indices(mean.shape)]
    np.testing.assert_allclose(centre, 64, atol=3)
    assert np.sum(np.abs(star.probe) ** 2) == pytest.approx(star.image.sum(axis=(1, 2)).mean(), rel=1e-4)
    rows = np.arange(0, 516, 3)
    right = gradient_descent(star, rows)
    wrong = [
        gradient_descent(replace(star, position_m=star.position_m[:, ::-1]), rows),
        gradient_descent(replace(star, position_m=-star.position_m), rows),
        gradient_descent(replace(star, position_m=star.position_m * (1, -1)), rows),
    ]
    assert right < 0.6 * min(wrong), (right, wrong)
