"""One reconstruction by two processes, and who has what."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_scans import known_scan, with_plate

from ptycho_bluesky.bench import cg_workers
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io import read_reconstruction
from ptycho_bluesky.reconstruction import CgOptions, EpieOptions, reconstruct, reconstruct_side_by_side
from ptycho_bluesky.reconstruction.workers import Alone, make_tiles

FRAMES = 70


@given(st.integers(1, 5), st.integers(5, 60), st.integers(0, 100))
def test_tiles_hold_every_frame_once_and_their_windows(count, frames, seed):
    corner = np.random.default_rng(seed).integers(0, 50, (frames, 2))
    tiles = make_tiles(corner, 8, (58, 58), count)
    assert sorted(np.concatenate([tile.rows for tile in tiles]).tolist()) == list(range(frames))
    sizes = [len(tile.rows) for tile in tiles]
    assert max(sizes) - min(sizes) <= 1
    for tile in tiles:
        assert (corner[tile.rows] >= tile.first).all()
        assert (corner[tile.rows] + 8 <= tile.last).all()
    for one in tiles:
        for other in tiles:
            mine, theirs = one.shared(other), other.shared(one)
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                assert [s.start + f for s, f in zip(mine, one.first, strict=True)] == [
                    s.start + f for s, f in zip(theirs, other.first, strict=True)
                ]


def test_more_workers_than_frames_are_refused():
    with pytest.raises(InputError, match="workers"):
        make_tiles(np.zeros((2, 2), dtype=np.int64), 8, (8, 8), 3)


def test_only_cg_is_shared():
    class Two:
        rank, count = 0, 2

    with pytest.raises(InputError, match="epie"):
        reconstruct(known_scan(10, 80e-9).measurement, EpieOptions(), workers=Two())


def test_what_several_workers_cannot_do_is_refused():
    class Two:
        rank, count = 0, 2

    measurement = known_scan(10, 80e-9).measurement
    for options in (CgOptions(correct_positions=True), CgOptions(patience=3)):
        with pytest.raises(InputError, match="positions refined"):
            reconstruct(measurement, options, workers=Two())


def test_runs_side_by_side_are_those_alone():
    measurements = [with_plate(known_scan(30, 90e-9, seed=seed)) for seed in (1, 2)]
    options = EpieOptions(iterations=2, check_probe=False)
    both = reconstruct_side_by_side(measurements, options, ("cpu", "cpu"))
    for measurement, found in zip(measurements, both, strict=True):
        np.testing.assert_array_equal(found.object, reconstruct(measurement, options).object)
    with pytest.raises(InputError, match="device"):
        reconstruct_side_by_side(measurements, options, ())


def test_two_workers_give_the_answer_of_one(tmp_path):
    out = tmp_path / "two.npz"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "ptycho_bluesky.bench.cg_workers", str(out), str(FRAMES), "64", "6", "complex64", "complex128"],
        capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as file:
        two = dict(file)
    # What changes by the order of a sum grows from step to step: more in single precision.
    for dtype, near, nearer in (("complex64", 2e-4, 1e-5), ("complex128", 1e-10, 1e-10)):
        one = cg_workers.run(Alone(), cg_workers.Problem.simulated(FRAMES, 64, dtype), 6)
        assert np.abs(two[f"{dtype}_object"] - one["object"]).max() <= near
        assert two[f"{dtype}_error"] == pytest.approx(one["error"], rel=nearer)
        assert one["error"][-1] < 0.5 * one["error"][0]
    assert 0 < two["complex64_bytes_sent"] < two["complex64_bytes_gathered"]


def test_command_line_by_two_workers(tmp_path):
    scan = known_scan(40, 100e-9)
    path, out = tmp_path / "scan.npz", tmp_path / "out.h5"
    np.savez(path, reciprocal=scan.measurement.image, position=scan.measurement.position_m)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "ptycho_bluesky.cli.main", "reconstruct", str(path), "--engine", "cg", "--iterations", "2",
         "--object-pixel-m", "2.3e-8", "--no-picture", "--out", str(out)],
        capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = read_reconstruction(out)
    assert len(result.position_m) == 40
    assert result.error[1] < result.error[0]
    assert done.stdout.count(out.name) == 1
