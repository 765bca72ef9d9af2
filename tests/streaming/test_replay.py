"""Stored scans through the edge's path: from measurements, from documents, from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import FrameState, Measurement
from ptycho_bluesky.streaming.closing import ClosingOptions
from ptycho_bluesky.streaming.replay import replay_documents, replay_run

from .conftest import GEOMETRY, SIZE
from .test_core import model

QUICK = ClosingOptions(settle_s=0.01, wait_s=0.5, grace_s=0.05, poll_s=0.01)


@pytest.fixture
def measurement():
    rng = np.random.default_rng(0)
    n = 50
    image = rng.poisson(20.0, (n, SIZE, SIZE)).astype(np.uint16)
    image[:, 0, 0] = np.arange(n)
    index = np.sort(rng.choice(200, n, replace=False))
    return Measurement(
        image=image,
        position_m=rng.uniform(-1e-6, 1e-6, (n, 2)),
        frame_index=index,
        unique_id=index * 3 + 7,
        timestamp_s=np.full(n, np.nan),
        i0=np.full(n, np.nan),
        geometry=GEOMETRY,
        pixel_size_m=GEOMETRY.object_pixel_m,
        run_uid="stored",
    )


def test_a_measurement(measurement):
    batches, progress = [], []
    mosaic, counts = replay_run(
        measurement, model(), batch_size=16, on_batch=batches.append, progress=lambda *a: progress.append(a)
    )
    assert (counts.generated, counts.received, counts.inferred, counts.late) == (50, 50, 50, 0)
    assert (counts.lost, counts.unaccounted, counts.missed) == (0, 0, 0)
    np.testing.assert_array_equal(mosaic.frame_log["frame_index"], measurement.frame_index)
    np.testing.assert_array_equal(mosaic.frame_log["unique_id"], measurement.unique_id)
    assert [len(batch.frames) for batch in batches] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate([b.frames.frame_index for b in batches]), measurement.frame_index)
    assert progress[-1] == (50, 50)
    assert mosaic.run_uid == "stored"
    assert mosaic.coverage.max() > 3


def test_the_batch_size_changes_nothing(measurement):
    whole, _ = replay_run(measurement, model(), batch_size=50)
    single, _ = replay_run(measurement, model(), batch_size=1)
    np.testing.assert_array_equal(whole.coverage, single.coverage)
    np.testing.assert_allclose(whole.phase_rad, single.phase_rad, atol=1e-5)


def test_without_model_there_are_maps(measurement):
    mosaic, counts = replay_run(measurement)
    assert counts.inferred == 50
    assert mosaic.coverage.max() == 0
    assert mosaic.maps["bright_field"].max() > 0


def test_a_corrupt_frame_is_rejected(measurement):
    image = measurement.image.astype(np.float32)
    image[4, 3, 3] = np.nan
    mosaic, counts = replay_run(Measurement(**{**vars(measurement), "image": image}), model())
    assert (counts.rejected, counts.inferred, counts.lost) == (1, 49, 0)
    assert mosaic.frame_log["state"][4] == FrameState.REJECTED


def test_bad_input_is_told(measurement):
    with pytest.raises(InputError, match="no frames"):
        replay_run(
            Measurement(**{**vars(measurement), "image": measurement.image[:0], "frame_index": np.zeros(0, int)})
        )
    with pytest.raises(InputError, match="geometry"):
        replay_run(measurement, model(image_shape=[32, 32]))


def test_documents_of_finished_runs(fake_run):
    runs = [fake_run(), fake_run(pauses=(10,), reset=True)]
    for run in runs:
        run.write_file()
    documents = [doc for run in runs for doc in run.all_documents()]
    results = replay_documents(documents, model(), closing=QUICK)
    assert [result.mosaic.run_uid for result in results] == [run.uid for run in runs]
    assert all(result.counts.inferred == result.counts.recovered == 40 for result in results)
    assert all(result.counts.lost == result.counts.unaccounted == 0 for result in results)


@pytest.fixture
def app():
    from ptycho_bluesky.cli.main import build_app

    return build_app()


@pytest.fixture
def model_file(tmp_path):
    import torch

    from ptycho_bluesky.models import build
    from ptycho_bluesky.models.export import to_onnx

    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(build("ptychonn2"), (SIZE, SIZE), 1.0, {"sqrt": True, "scale": 0.1}, {}))
    return path


def test_replay_command(app, fake_run, tmp_path, model_file):
    run = fake_run()
    run.write_file()
    journals = tmp_path / "data" / "journal"
    journals.mkdir(parents=True)
    text = "".join(json.dumps({"name": name, "doc": doc}) + "\n" for name, doc in run.all_documents())
    (journals / f"{run.uid}.jsonl").write_text(text)
    picture = tmp_path / "scan.png"
    arguments = [
        "replay",
        run.uid,
        "--model",
        str(model_file),
        "--data-dir",
        str(tmp_path / "data"),
        "--out",
        str(picture),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "inferred" in done.output
    assert picture.stat().st_size > 10_000
    run.path.unlink()
    assert CliRunner().invoke(app, ["replay", run.uid, "--data-dir", str(tmp_path / "data")]).exit_code == 1


def test_infer_command_on_real_data(app, shared_data, tmp_path):
    from ptycho_bluesky.io.products import read_inference

    out = tmp_path / "star.h5"
    done = CliRunner().invoke(
        app,
        [
            "infer",
            str(shared_data / "siemens-star-small.npz.bz2"),
            "--model",
            str(shared_data / "ptychonn2_26id_phase.pth"),
            "--limit",
            "24",
            "--out",
            str(out),
        ],
    )
    assert done.exit_code == 0, done.output
    content = read_inference(out)
    assert content.phase_rad.shape == (24, 128, 128)
    assert np.isfinite(content.phase_rad).all()
    assert out.with_suffix(".png").exists()
