"""Every format that is read goes through the commands that take a FILE."""

from __future__ import annotations

import pytest
import yaml
from scan_files import (
    GEOMETRY,
    simulate,
    write_area_detector,
    write_cxi,
    write_nxcxi,
    write_ptychonn,
    write_tike,
)
from typer.testing import CliRunner

from ptycho_bluesky.cli.main import build_app
from ptycho_bluesky.io import read_reconstruction

PIXEL = ["--object-pixel-m", str(GEOMETRY.object_pixel_m)]
FORMATS = {
    "scan.npz": (write_tike, PIXEL, "tike npz"),
    "scan.npz.bz2": (write_tike, PIXEL, "tike npz"),
    "ptychonn.npz": (write_ptychonn, [], "PtychoNN npz"),
    "scan.cxi": (write_cxi, [], "CXI"),
    "nexus.cxi": (write_nxcxi, [], "NXcxi_ptycho"),
    "detector.h5": (write_area_detector, [], "areaDetector NeXus"),
}


@pytest.fixture(scope="module")
def scan():
    return simulate(50)


def call(*arguments):
    result = CliRunner().invoke(build_app(), [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("name", FORMATS)
def test_reconstruct_and_calibrate(scan, tmp_path, name):
    write, stated, kind = FORMATS[name]
    path, out, calibration = write(tmp_path / name, scan), tmp_path / "out.h5", tmp_path / "calibration.yml"
    call("reconstruct", path, "--out", out, "--iterations", 3, "--half-scans", 0, "--no-picture", *stated)
    product = read_reconstruction(out)
    assert product.frame.pixel_size_m == pytest.approx(GEOMETRY.object_pixel_m, rel=1e-6)
    assert product.error[-1] < product.error[0]
    assert product.provenance["source"]["format"] == kind
    assert product.provenance["source"]["name"] == str(path)
    call("calibrate", path, "--out", calibration, "--no-orientation", *stated)
    measured = yaml.safe_load(calibration.read_text())
    assert measured["detector"]["centre_px"] == [32, 32]
    assert measured["measured"]["scan"] == str(path)
