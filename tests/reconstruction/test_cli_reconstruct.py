from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from known_scans import STAR, known_scan
from typer.testing import CliRunner

from ptycho_bluesky.cli.main import build_app
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.io import read_reconstruction, write_reconstruction
from ptycho_bluesky.reconstruction.half_scans import stored_agreement
from ptycho_bluesky.records import Reconstruction
from ptycho_bluesky.training.corpus import read_label_set


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory):
    scan = known_scan(60, 80e-9, exposure_s=2e-3)
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    np.savez(path, reciprocal=scan.measurement.image.astype(np.float32), position=scan.measurement.position_m)
    return path


def known_result() -> Reconstruction:
    frame = ObjectFrame((0.0, 0.0), 1e-8, (20, 20))
    return Reconstruction(
        np.ones((20, 20), complex), np.ones((1, 8, 8), complex), np.zeros((1, 2)), frame, np.ones(1), None, "epie", {}
    )


def run(*arguments):
    return CliRunner().invoke(build_app(), ["reconstruct", *map(str, arguments)], catch_exceptions=False)


def test_file_to_product_and_picture(scan_file, tmp_path):
    out = tmp_path / "out.h5"
    result = run(scan_file, "--engine", "epie", "--out", out, "--iterations", 4, "--energy-eV", 1e4,
                 "--distance-m", 0.9, "--detector-pixel-m", 75e-6, "--holdout", 0.1)  # fmt: skip
    assert result.exit_code == 0
    assert out.name in result.stdout
    product = read_reconstruction(out)
    assert product.engine == "epie"
    assert len(product.error) == 4
    assert product.error[-1] < product.error[0]
    assert product.geometry.object_pixel_m == pytest.approx(23.2e-9, rel=0.01)
    assert len(product.position_m) == 54
    assert len(product.provenance["frames_held_out"]) == 6
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    rings = stored_agreement(product)
    assert rings is not None
    assert rings.passes == 20
    assert 0.3 < rings.correlation <= 1.0
    assert "half-scans" in result.stderr


def test_stated_pixel_and_no_picture(scan_file, tmp_path):
    out = tmp_path / "out.h5"
    result = run(scan_file, "-o", out, "--iterations", 1, "--object-pixel-m", 23.2e-9, "--limit", 40, "--no-picture",
                 "--half-scans", 0)  # fmt: skip
    assert result.exit_code == 0
    assert len(read_reconstruction(out).position_m) == 40
    assert not (tmp_path / "out.png").exists()
    assert stored_agreement(read_reconstruction(out)) is None


def test_labels_are_written_when_they_pass(tmp_path):
    scan = known_scan(150, 80e-9, exposure_s=2e-3)
    position, image = scan.measurement.position_m, scan.measurement.image.astype(np.float32)
    path, out, labels = (tmp_path / name for name in ("scan.npz", "out.h5", "labels.h5"))
    options = ["--iterations", 15, "--half-scans", 8, "--no-picture", "--object-pixel-m", scan.measurement.pixel_size_m]
    np.savez(path, reciprocal=image, position=position)
    result = run(path, "-o", out, "--labels", labels, *options)
    assert result.exit_code == 0, result.stderr
    found = read_label_set(labels)
    assert len(found) == 150
    assert found.provenance["check"]["accepted"]
    assert found.provenance["check"]["figures"]["held_out_fraction"] >= 0.05
    labels.unlink()
    np.savez(path, reciprocal=image, position=np.random.default_rng(0).permutation(position))
    rejected = run(path, "-o", out, "--labels", labels, *options)
    assert rejected.exit_code == 1
    assert "labels rejected" in rejected.stderr
    assert not labels.exists()


def test_a_warm_start_from_a_product_goes_on_where_it_ended(scan_file, tmp_path):
    first, again = tmp_path / "first.h5", tmp_path / "again.h5"
    quick = ["--object-pixel-m", 23.2e-9, "--half-scans", 0, "--no-picture"]
    assert run(scan_file, "-o", first, "--iterations", 15, *quick).exit_code == 0
    assert run(scan_file, "-o", again, "--iterations", 1, "--warm-start", first, *quick).exit_code == 0
    before, after = (read_reconstruction(path) for path in (first, again))
    assert after.error[0] < 1.3 * before.error[-1]
    assert after.provenance["probe_start"] == "given"


def test_a_long_list_of_frames_is_stored(tmp_path):
    result = known_result()
    many = replace(result, provenance={"frames_used": list(range(30_000))})
    write_reconstruction(tmp_path / "many.h5", many)
    assert read_reconstruction(tmp_path / "many.h5").provenance == many.provenance


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.h5", "--out", "out.h5"], "does not exist"),
        (["{file}", "--out", "no/such/folder/out.h5"], "writable"),
        (["{file}", "--out", "out.h5", "--engine", "magic"], "engine"),
        (["{file}", "--out", "out.h5", "--iterations", "0"], "iterations"),
        (["{file}", "--out", "out.h5", "--holdout", "2"], "holdout_fraction"),
        (["{file}", "--out", "out.h5", "--object-pixel-m", "1e-8", "--device", "abacus"], "device"),
        (["some-run", "--out", "out.h5", "--energy-eV", "1e4"], "states its own geometry"),
        (["{file}", "--out", "out.h5", "--labels", "l.h5", "--half-scans", "0"], "half-scans judge"),
        (["{file}", "--out", "out.h5", "--object-pixel-m", "1e-8", "--warm-start", "live"], "beside a file"),
        (["{file}", "--out", "out.h5", "--object-pixel-m", "1e-8", "--warm-start", "no/model.onnx"], "does not exist"),
    ],
)
def test_bad_input_says_what_is_wrong(scan_file, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        run(*(argument.format(file=scan_file) for argument in arguments))


def test_run_is_read_from_tiled(tmp_path, monkeypatch):
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    asked = {}

    class Store:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked["closed"] = True

        def read_run(self, uid, **options):
            asked.update(options, uid=uid)
            return known_scan(40, 80e-9, exposure_s=2e-3).measurement

    monkeypatch.setattr(TiledStore, "connect", lambda settings: Store())
    out = tmp_path / "run.h5"
    result = run("0a1b2c", "--out", out, "--iterations", 2, "--no-picture", "--limit", 40)
    assert result.exit_code == 0
    assert asked == {"uid": "0a1b2c", "object_pixel_m": None, "limit": 40, "closed": True}
    assert len(read_reconstruction(out).error) == 2


def test_unreachable_tiled_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PTYCHO_BLUESKY_TILED__URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9"):
        run("some-run", "--out", tmp_path / "out.h5")


def test_error_exit_of_the_command_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ptycho_bluesky.cli.main", "reconstruct", "nowhere.h5", "--out", "out.h5"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "nowhere.h5" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not STAR.exists(), reason=f"real scan {STAR} is not there")
def test_star_without_geometry_says_so(tmp_path):
    out = tmp_path / "star.h5"
    assert run(STAR, "--out", out, "--iterations", 3, "--limit", 150).exit_code == 0
    product = read_reconstruction(out)
    assert product.geometry is None
    assert product.error[-1] < 0.5 * product.error[0]
