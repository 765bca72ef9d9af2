from __future__ import annotations

import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
from scan_files import GEOMETRY, write_area_detector

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io import area_detector, read_measurement
from ptycho_bluesky.io.hdf5 import is_unclosed


@pytest.fixture
def path(tmp_path, scan):
    return write_area_detector(tmp_path / "run.h5", scan)


def test_rows_come_back_with_their_own_ids(path, scan):
    rows = area_detector.read_rows(path, 2, 9)
    np.testing.assert_array_equal(rows["image"], scan.image[2:9])
    np.testing.assert_array_equal(rows["unique_id"], scan.unique_id[2:9])
    np.testing.assert_array_equal(rows["position_m"], scan.position_m[2:9])
    np.testing.assert_array_equal(rows["timestamp_s"], scan.timestamp_s[2:9])
    np.testing.assert_array_equal(rows["i0"], scan.i0[2:9])


@pytest.mark.parametrize(
    ("start", "stop", "expected"), [(0, None, 12), (10, 50, 2), (12, None, 0), (40, 60, 0), (-3, 4, 4), (5, 2, 0)]
)
def test_ranges_beyond_the_file_are_cut(path, start, stop, expected):
    assert len(area_detector.read_rows(path, start, stop)["unique_id"]) == expected


def test_layout_is_nexus_and_chunked_by_frame(path):
    with h5py.File(path) as file:
        assert file["/entry"].attrs["NX_class"] == "NXentry"
        assert file["/entry/data"].attrs["signal"] == "data"
        assert file[area_detector.FRAMES].chunks == (1, 64, 64)
        assert file[area_detector.TIMESTAMP].attrs["units"] == "s"
        assert file["/entry/instrument/detector/data"].shape == (12, 64, 64)
        assert area_detector.read_geometry(file) == GEOMETRY


def test_columns_left_out_are_nan(tmp_path, scan):
    with h5py.File(tmp_path / "run.h5", "w", libver="latest") as file:
        datasets = area_detector.create_datasets(file, (64, 64), np.uint16)
        area_detector.append_rows(datasets, scan.image, scan.unique_id)
        assert area_detector.read_geometry(file) is None
    rows = area_detector.read_rows(tmp_path / "run.h5")
    assert np.isnan(rows["i0"]).all()
    assert np.isnan(rows["position_m"]).all()


def test_dropped_frames_leave_gaps_in_the_ids_not_in_the_rows(tmp_path, scan):
    from dataclasses import replace

    keep = [0, 1, 3, 4, 5, 6, 9, 10, 11]
    kept = replace(scan, image=scan.image[keep], position_m=scan.position_m[keep], i0=scan.i0[keep])
    with h5py.File(tmp_path / "run.h5", "w", libver="latest") as file:
        datasets = area_detector.create_datasets(file, (64, 64), np.uint16, geometry=GEOMETRY)
        area_detector.append_rows(
            datasets,
            kept.image,
            scan.unique_id[keep],
            position_y_m=kept.position_m[:, 0],
            position_x_m=kept.position_m[:, 1],
        )
    measurement = read_measurement(tmp_path / "run.h5")
    assert (measurement.unique_id - 100).tolist() == keep
    np.testing.assert_array_equal(measurement.position_m, scan.position_m[keep])


def test_growing_file_is_read_as_far_as_it_is_flushed(tmp_path, scan):
    path = tmp_path / "run.h5"
    with h5py.File(path, "w", libver="latest") as writer:
        datasets = area_detector.create_datasets(writer, (64, 64), np.uint16, geometry=GEOMETRY)
        writer.swmr_mode = True
        code = f"""
            from ptycho_bluesky.io import area_detector
            with area_detector.open_file({str(path)!r}) as file:
                for line in iter(input, "end"):
                    print(area_detector.read_rows(file)["unique_id"].tolist(), flush=True)
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            for stop in (4, 9):
                start = datasets["unique_id"].shape[0]
                area_detector.append_rows(datasets, scan.image[start:stop], scan.unique_id[start:stop])
                for item in datasets.values():
                    item.flush()
                reader.stdin.write("go\n")
                reader.stdin.flush()
                assert reader.stdout.readline().strip() == str(scan.unique_id[:stop].tolist())
            reader.stdin.write("end\n")
            reader.stdin.flush()
            assert reader.wait(timeout=30) == 0


def test_file_of_a_killed_writer_is_read_to_its_last_flush(tmp_path):
    path = tmp_path / "run.h5"
    code = f"""
        import os, h5py, numpy as np
        from ptycho_bluesky.io import area_detector
        from ptycho_bluesky.geometry import Geometry
        file = h5py.File({str(path)!r}, "w", libver="latest")
        datasets = area_detector.create_datasets(file, (8, 8), "u2", geometry=Geometry(1e4, 0.9, 75e-6, 8))
        file.swmr_mode = True
        def append(n):
            start = datasets["unique_id"].shape[0]
            ids = np.arange(start, start + n)
            area_detector.append_rows(
                datasets, np.ones((n, 8, 8), "u2"), ids, position_y_m=ids * 1e-9, position_x_m=ids * 1e-9
            )
        append(7)
        file.flush()
        append(5)
        os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, check=False).returncode == 9
    assert is_unclosed(path)
    measurement = read_measurement(path)
    assert len(measurement) >= 7
    assert measurement.metadata["unclosed"] is True
    assert measurement.metadata["rows_read"] == len(measurement)
    np.testing.assert_array_equal(measurement.unique_id, np.arange(len(measurement)))
    np.testing.assert_allclose(measurement.position_m[:, 0], measurement.unique_id * 1e-9)


def test_rows_made_but_never_written_are_left_out(tmp_path, scan, caplog):
    path = write_area_detector(tmp_path / "run.h5", scan)
    with h5py.File(path, "r+") as file:
        for name in (area_detector.FRAMES, area_detector.UNIQUE_ID, *area_detector.COLUMNS.values()):
            file[name].resize(15, axis=0)
    rows = area_detector.read_rows(path)
    assert len(rows["unique_id"]) == len(rows["image"]) == 12
    assert "never written" in caplog.text


def test_missing_columns_are_named(path):
    with h5py.File(path, "r+") as file:
        del file[area_detector.I0]
    with pytest.raises(InputError, match="I0"):
        area_detector.read_rows(path)
    with pytest.raises(InputError, match="I0"):
        read_measurement(path)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.95])
def test_file_that_was_cut_short_is_refused_at_once(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match="it was cut short"):
        read_measurement(path)


@pytest.mark.parametrize("version", [None, "latest", ("v108", "v108")])
def test_old_and_new_superblocks_are_read(tmp_path, version):
    with h5py.File(tmp_path / "file.h5", "w", libver=version) as file:
        file["x"] = np.arange(1000)
    with area_detector.open_file(tmp_path / "file.h5") as file:
        assert file["x"][999] == 999
    content = (tmp_path / "file.h5").read_bytes()
    (tmp_path / "file.h5").write_bytes(content[:-100])
    with pytest.raises(InputError, match="it was cut short"):
        area_detector.open_file(tmp_path / "file.h5")
