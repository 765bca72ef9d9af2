from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import Geometry, ObjectFrame
from ptycho_bluesky.io import InferenceWriter, read_inference, read_reconstruction, write_reconstruction
from ptycho_bluesky.records import FrameBatch, InferredBatch, Mosaic, Reconstruction

GEOMETRY = Geometry(10e3, 0.9, 75e-6, 16)
RNG = np.random.default_rng(0)


def reconstruction(geometry: Geometry | None = GEOMETRY) -> Reconstruction:
    pixel = 1.0 if geometry is None else geometry.object_pixel_m
    frame = ObjectFrame((-3 * pixel, 5 * pixel), pixel, (40, 50))
    obj = np.exp(1j * RNG.uniform(-1, 1, (40, 50))).astype(np.complex64)
    probe = (RNG.normal(size=(2, 16, 16)) + 1j * RNG.normal(size=(2, 16, 16))).astype(np.complex64)
    position = frame.to_m(RNG.uniform(8, 30, (7, 2)))
    options = {"iterations": 5, "alpha": np.float32(0.5), "shape": (1, 2), "mask": np.arange(3)}
    return Reconstruction(
        obj, probe, position, frame, np.array([0.5, 0.2]), geometry, "epie", options, "uid-1", {"numpy": "2"}
    )


@pytest.mark.parametrize("geometry", [GEOMETRY, None])
def test_reconstruction_comes_back(tmp_path, geometry):
    made = reconstruction(geometry)
    write_reconstruction(tmp_path / "out.h5", made)
    read = read_reconstruction(tmp_path / "out.h5")
    for name in ("object", "probe", "position_m", "error"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    for name in ("frame", "geometry", "engine", "run_uid", "provenance"):
        assert getattr(read, name) == getattr(made, name)
    assert read.options == {"iterations": 5, "alpha": 0.5, "shape": [1, 2], "mask": [0, 1, 2]}
    assert [item.name for item in tmp_path.iterdir()] == ["out.h5"]


def test_layout_is_that_of_ptychodus(tmp_path):
    """Names, shapes, attributes and centre as ptychodus' own reader of products expects them."""
    made = reconstruction()
    write_reconstruction(tmp_path / "out.h5", made)
    with h5py.File(tmp_path / "out.h5") as file:
        for name in ("name", "comments"):
            assert isinstance(file.attrs[name], str)
        assert file.attrs["probe_energy_eV"] == 10e3
        assert file.attrs["detector_object_distance_m"] == 0.9
        assert float(file.attrs["exposure_time_s"]) == 0.0
        assert file["object"].shape == (1, 40, 50)
        assert file["object_array"] == file["object"]
        assert file["probe"].shape == (1, 2, 16, 16)
        assert file["probe_array"].attrs["pixel_width_m"] == GEOMETRY.object_pixel_m
        np.testing.assert_array_equal(file["probe_position_x_m"][()], made.position_m[:, 1])
        np.testing.assert_array_equal(file["probe_position_y_m"][()], made.position_m[:, 0])
        assert file["probe_position_indexes"][()].tolist() == list(range(7))
        assert file["object_layer_spacing_m"].shape == (0,)
        assert file["loss_values"][()].tolist() == [0.5, 0.2]
        # ptychodus: index = (position − centre) / pixel + size / 2.
        attributes = file["object"].attrs
        row = (made.position_m[:, 0] - attributes["center_y_m"]) / attributes["pixel_height_m"] + 40 / 2
        col = (made.position_m[:, 1] - attributes["center_x_m"]) / attributes["pixel_width_m"] + 50 / 2
    np.testing.assert_allclose(np.stack([row, col], 1), made.frame.to_px(made.position_m), atol=1e-9)


def test_product_of_ptychodus_is_read(tmp_path):
    made = reconstruction()
    write_reconstruction(tmp_path / "out.h5", made)
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        for name in ("ptycho_bluesky", "object_array", "probe_array"):
            del file[name]
        del file.attrs["geometry"]
    read = read_reconstruction(tmp_path / "out.h5")
    np.testing.assert_array_equal(read.object, made.object)
    np.testing.assert_allclose(read.frame.to_px(made.position_m), made.frame.to_px(made.position_m), atol=1e-9)
    assert read.geometry is not None
    assert read.geometry.object_pixel_m == pytest.approx(GEOMETRY.object_pixel_m)
    assert read.geometry.detector_pixel_m == pytest.approx(75e-6)


def test_unknown_geometry_is_said_and_positions_are_pixels(tmp_path):
    write_reconstruction(tmp_path / "out.h5", reconstruction(None))
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["geometry"] == "unknown"
        assert file["position_px"].attrs["units"] == "px"
        assert "probe_position_x_m" not in file
        assert "pixel_width_m" not in file["object"].attrs


def test_replacing_a_product_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "out.h5"
    write_reconstruction(path, reconstruction())
    before = path.read_bytes()

    class Full(h5py.File):
        def create_dataset(self, name, *args, **kwargs):
            if name == "probe_array":
                raise OSError(28, "No space left on device")
            return super().create_dataset(name, *args, **kwargs)

    monkeypatch.setattr("ptycho_bluesky.io.storage.h5py.File", Full)
    with pytest.raises(StorageError, match="free some space"):
        write_reconstruction(path, reconstruction())
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["out.h5"]


def test_folders_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "out.h5", tmp_path / "file" / "out.h5"):
        with pytest.raises(StorageError, match=r"out\.h5"):
            write_reconstruction(path, reconstruction())
        with pytest.raises(StorageError, match=r"out\.h5"):
            InferenceWriter(path)


def batch(start: int, n: int, model_id="a" * 64, run_uid="run", size=8) -> InferredBatch:
    index = np.arange(start, start + n)
    frames = FrameBatch(
        run_uid,
        index,
        index + 50,
        np.zeros((n, 16, 16), np.uint16),
        np.stack([index * 1e-7, -index * 1e-7], axis=1),
        np.full(n, 2, np.uint8),
        1e9 + index * 1e-3,
        np.ones(n),
        np.zeros(n, np.uint8),
    )
    phase = np.broadcast_to(index[:, None, None] * 0.1, (n, size, size)).astype(np.float32)
    return InferredBatch(frames, phase, model_id, (index * 0.01).astype(np.float32))


def mosaic() -> Mosaic:
    frame = ObjectFrame((0.0, 1e-6), 1e-8, (30, 20))
    log = {"frame_index": np.arange(3), "position_y_m": np.ones(3), "model": np.zeros(3, np.int16)}
    arrays = [RNG.random((30, 20)).astype(np.float32) for _ in range(3)]
    coverage = np.arange(600, dtype=np.int32).reshape(30, 20)
    return Mosaic(
        arrays[0], arrays[1], coverage, arrays[2], frame, "run", log, ("a", "b"), {"bright_field": arrays[1] * 2}
    )


def test_inference_streams_and_ends_with_the_mosaic(tmp_path):
    path = tmp_path / "out.h5"
    made = mosaic()
    with InferenceWriter(path, geometry=GEOMETRY, metadata={"source": "scan.cxi"}) as writer:
        for start, n, model in ((0, 8, "a" * 64), (8, 3, "b" * 64)):
            writer.append(batch(start, n, model))
        assert len(writer) == 11
        writer.finish(made)
    read = read_inference(path)
    assert read.frame_index.tolist() == list(range(11))
    assert read.unique_id.tolist() == list(range(50, 61))
    np.testing.assert_allclose(read.phase_rad[:, 3, 3], np.arange(11) * 0.1, rtol=1e-6)
    np.testing.assert_allclose(read.position_m[:, 1], -np.arange(11) * 1e-7)
    assert read.model_id == ("a" * 64,) * 8 + ("b" * 64,) * 3
    assert read.metadata["source"] == "scan.cxi"
    assert read.metadata["geometry"] == GEOMETRY.as_dict()
    assert read.mosaic is not None
    for name in ("phase_rad", "weight", "coverage", "variance"):
        np.testing.assert_array_equal(getattr(read.mosaic, name), getattr(made, name))
    assert (read.mosaic.frame, read.mosaic.model_ids, read.mosaic.run_uid) == (made.frame, ("a", "b"), "run")
    np.testing.assert_array_equal(read.mosaic.maps["bright_field"], made.maps["bright_field"])
    np.testing.assert_array_equal(read.mosaic.frame_log["frame_index"], [0, 1, 2])


def test_inference_of_unknown_geometry_has_pixels(tmp_path):
    with InferenceWriter(tmp_path / "out.h5") as writer:
        writer.append(batch(0, 2))
    with h5py.File(tmp_path / "out.h5") as file:
        assert "position_m" not in file
        assert file["position_px"].attrs["units"] == "px"
        assert file.attrs["geometry"] == "unknown"
    read = read_inference(tmp_path / "out.h5")
    assert read.mosaic is None
    assert len(read.position_m) == 2


def test_crash_costs_no_more_than_the_last_batch(tmp_path):
    path = tmp_path / "out.h5"
    code = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_products import batch, GEOMETRY
        from ptycho_bluesky.io import InferenceWriter
        writer = InferenceWriter({str(path)!r}, geometry=GEOMETRY)
        writer.append(batch(0, 8))
        writer.append(batch(8, 8))
        os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, check=False).returncode == 9
    read = read_inference(path)
    assert len(read.frame_index) >= 8
    np.testing.assert_allclose(read.phase_rad[:, 0, 0], read.frame_index * 0.1, rtol=1e-6)
    assert read.mosaic is None


@pytest.mark.parametrize("wrong", [{"run_uid": "other"}, {"size": 4}])
def test_file_holds_one_run_and_one_shape(tmp_path, wrong):
    with InferenceWriter(tmp_path / "out.h5") as writer:
        writer.append(batch(0, 2))
        with pytest.raises(InputError):
            writer.append(batch(2, 2, **wrong))


def test_files_of_other_content_are_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError):
        read_reconstruction(tmp_path / "other.h5")
    with pytest.raises(InputError):
        read_inference(tmp_path / "other.h5")


def test_geometry_attribute_is_plain_json(tmp_path):
    write_reconstruction(tmp_path / "out.h5", reconstruction())
    with h5py.File(tmp_path / "out.h5") as file:
        assert json.loads(file.attrs["geometry"])["energy_eV"] == 10e3
