from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from known_scans import known_scan
from typer.testing import CliRunner

from ptycho_bluesky.bench.reconstruct_stream import Pieces, diffraction_error
from ptycho_bluesky.cli.main import build_app
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io import GrowingFile, read_reconstruction
from ptycho_bluesky.metrics import phase_rms_rad
from ptycho_bluesky.reconstruction import CgOptions, EpieOptions, RpieOptions, reconstruct
from ptycho_bluesky.reconstruction.following import FollowOptions, follow

WRITER = Path(__file__).with_name("growing_writer.py")
PASSES = 20


@pytest.fixture(scope="module")
def scan():
    return known_scan(160, 70e-9, exposure_s=2e-3)


@pytest.fixture
def start_writer(scan, tmp_path):
    """Start a process that writes the scan; returns its file."""
    started = []

    def start(pieces: int, pause_s: float, how: str = "close") -> Path:
        geometry = scan.measurement.geometry
        content = {name: getattr(geometry, name) for name in
                   ("energy_eV", "distance_m", "detector_pixel_m", "num_px", "orientation")}  # fmt: skip
        source, target = tmp_path / "source.npz", tmp_path / "run.h5"
        np.savez(source, image=scan.measurement.image, position_m=scan.measurement.position_m, **content)
        started.append(subprocess.Popen([sys.executable, WRITER, source, target, str(pieces), str(pause_s), how],
                                        stderr=subprocess.DEVNULL))  # fmt: skip
        return target

    yield start
    for process in started:
        process.kill()
        process.wait(10.0)


def quick(**changes):
    return FollowOptions(**{"look_period_s": 0.05, "image_period_s": 1e9, **changes})


def first_frame(measurement):
    names = ("image", "position_m", "frame_index", "unique_id", "timestamp_s", "i0")
    return replace(measurement, **{name: getattr(measurement, name)[:1] for name in names})


def test_followed_scan_is_as_good_as_the_finished_one():
    scan = known_scan(320, 70e-9, exposure_s=2e-3)
    options = RpieOptions(batch_size=8, iterations=PASSES, holdout_fraction=0.0)
    shown = []
    grown = follow(Pieces(scan.measurement, 10), options, quick(image_period_s=0.0), show=shown.append)
    whole = reconstruct(scan.measurement, options)
    assert diffraction_error(scan.measurement, grown) <= 1.05 * diffraction_error(scan.measurement, whole)
    assert phase_rms_rad(grown.object, scan.on(grown.frame), scan.lit(grown)) <= 0.05
    assert len(shown[0].position_m) <= 0.1 * len(scan.measurement)
    assert grown.provenance["first_image_frames"] == len(shown[0].position_m)
    assert grown.provenance["frames_used"] == list(range(320))
    assert grown.provenance["frame_updates"] == PASSES * 320
    assert grown.geometry == scan.measurement.geometry


def test_monitor_and_frames_without_position(scan):
    beam = np.linspace(1.0, 2.0, 160)
    image = scan.measurement.image * (beam / beam[:32].mean())[:, None, None]
    position = scan.measurement.position_m.copy()
    position[40] = np.nan
    dimmed = replace(scan.measurement, image=image, i0=beam, position_m=position)
    options = EpieOptions(iterations=6)
    grown = follow(Pieces(dimmed, 5), options, quick())
    assert grown.provenance["frames_excluded"] == {"no position": 1, "outlier": 0, "no intensity monitor": 0}
    assert 40 not in grown.provenance["frames_used"]
    steady = follow(Pieces(scan.measurement, 5), options, quick())
    assert grown.error[-1] == pytest.approx(steady.error[-1], rel=0.05)


def test_engine_that_takes_no_frames_and_scan_without_any(scan):
    with pytest.raises(InputError, match="epie and rpie"):
        follow(Pieces(scan.measurement, 2), CgOptions())
    with pytest.raises(InputError, match="correct_positions, device=cuda for a scan that is followed"):
        follow(Pieces(scan.measurement, 2), EpieOptions(correct_positions=True, device="cuda"))
    source = Pieces(first_frame(scan.measurement), 1)
    with pytest.raises(InputError, match="ended with 1 frames"):
        follow(source, EpieOptions(), quick())
    with pytest.raises(InputError, match="patience_s"):
        FollowOptions(patience_s=0.0)


def test_growing_file_gives_each_frame_once(scan, start_writer):
    path = start_writer(8, 0.2)
    source, parts = GrowingFile(path), []
    until = time.monotonic() + 60.0
    while not source.ended and time.monotonic() < until:
        new = source.new()
        if new is not None:
            parts.append(new)
        time.sleep(0.05)
    assert source.ended
    assert len(parts) > 1
    assert np.concatenate([part.unique_id for part in parts]).tolist() == list(range(1, 161))
    np.testing.assert_array_equal(np.concatenate([part.image for part in parts]), scan.measurement.image)


def test_command_shows_an_image_before_the_scan_ends(scan, start_writer, tmp_path):
    out = tmp_path / "object.h5"
    # The detector takes its last frames only when the picture is there.
    path = start_writer(10, 0.2, str(out.with_suffix(".png")))
    result = CliRunner().invoke(
        build_app(),
        ["reconstruct", str(path), "--follow", "30", "--out", str(out), "--iterations", "8", "--half-scans", "4"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.stderr
    product = read_reconstruction(out)
    assert len(product.position_m) == len(scan.measurement)
    assert product.provenance["first_image_frames"] <= 0.9 * len(scan.measurement)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "followed while it was measured" in result.stderr


def test_writer_that_dies_leaves_what_it_wrote(scan, start_writer, tmp_path):
    path = start_writer(4, 0.3, "die")
    out = tmp_path / "object.h5"
    result = CliRunner().invoke(
        build_app(),
        ["reconstruct", str(path), "--follow", "6", "--out", str(out), "--iterations", "3", "--half-scans", "0",
         "--no-picture"],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert len(read_reconstruction(out).position_m) == len(scan.measurement)


def test_interrupted_command_writes_what_is_there(scan, start_writer, tmp_path):
    out = tmp_path / "object.h5"
    path = start_writer(40, 1.0)
    process = subprocess.Popen(
        [sys.executable, "-m", "ptycho_bluesky", "reconstruct", str(path), "--follow", "60", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60.0
        while not out.with_suffix(".png").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60.0)
    finally:
        process.kill()
        process.wait(10.0)
    assert process.returncode == 0, said
    assert "stopped: the image of" in said
    product = read_reconstruction(out)
    assert product.provenance["stopped"] is True
    assert 32 <= len(product.position_m) < len(scan.measurement)
    assert np.abs(product.object).max() > 0.0


def test_stop_before_the_first_frames(scan):
    stop = threading.Event()
    stop.set()
    with pytest.raises(InputError, match="ended with 0 frames"):
        follow(Pieces(scan.measurement, 2), EpieOptions(), quick(), stop=stop)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.h5", "--follow", "5", "--labels", "l.h5"], "--labels beside --follow"),
        (["some-run-uid", "--follow", "5"], "growing file"),
        (["nowhere/run.h5", "--follow", "5"], "growing file"),
        (["run.h5", "--follow", "5", "--engine", "cg"], "epie and rpie"),
    ],
)
def test_bad_calls_say_why(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(build_app(), ["reconstruct", *arguments, "--out", "o.h5"], catch_exceptions=False)
