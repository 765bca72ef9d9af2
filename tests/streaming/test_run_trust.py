"""Light, residuals and flags along the edge's own path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_bluesky.inference import LoadedModel
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.stitching import disc_weight
from ptycho_bluesky.streaming import trust as module
from ptycho_bluesky.streaming.replay import measurement_documents, replay_run
from ptycho_bluesky.streaming.trust import RunTrust
from ptycho_bluesky.trust.flags import Flag, Limits
from ptycho_bluesky.trust.light import Light
from ptycho_bluesky.trust.physics import Physics
from ptycho_bluesky.trust.residual import ResidualMeter

from .conftest import GEOMETRY, SIZE
from .test_core import Bench, ModelSlot

NUM = 60
LIGHT = Light(i0=1000.0, exposure_s=5e-3)


def probe() -> np.ndarray:
    distance = np.add.outer(*[(np.arange(SIZE) - SIZE // 2) ** 2.0] * 2)
    wave = np.exp(-distance / 18.0 + 0.05j * distance)
    return (wave * np.sqrt(1e5 / np.sum(np.abs(wave) ** 2)))[None].astype(np.complex64)


def physics(**changes) -> Physics:
    return Physics(probe(), light=LIGHT, **changes)


class Reader:
    """Answers the phase that is wanted, scaled by how bright the frames look, as a network would be misled by it."""

    name = "reader"
    image_shape = patch_shape = (SIZE, SIZE)

    def __init__(self, truth, manifest):
        self.truth, self.manifest = truth, {"image_shape": [SIZE, SIZE], **manifest}

    def infer(self, counts, count_scale=None):
        look = counts.sum(axis=(1, 2)) * (1.0 if count_scale is None else count_scale) / 1e5
        return (self.truth * look[:, None, None]).astype(np.float32)


def truth() -> np.ndarray:
    grid = np.linspace(-1, 1, SIZE)
    return (0.5 * grid[:, None] * grid[None] - 0.3 * grid[None] ** 2).astype(np.float32)


def reader(**manifest) -> LoadedModel:
    content = {"physics": physics(**manifest).as_dict()}
    return LoadedModel("r", Reader(truth(), content), disc_weight((SIZE, SIZE)))


def scan(light: float = 1.0, monitor: bool = True, noise: bool = True, **changes) -> Measurement:
    expected = light * ResidualMeter(physics(), (SIZE, SIZE)).expected(truth()[None])
    rng = np.random.default_rng(0)
    drawn = rng.poisson(expected, (NUM, SIZE, SIZE)) if noise else np.broadcast_to(expected, (NUM, SIZE, SIZE))
    position = np.random.default_rng(1).uniform(-1e-6, 1e-6, (NUM, 2))
    index = np.arange(NUM)
    measurement = Measurement(
        image=drawn.astype(np.float32),
        position_m=position,
        frame_index=index,
        unique_id=index,
        timestamp_s=np.full(NUM, np.nan),
        i0=np.full(NUM, 1000.0 * light if monitor else np.nan),
        geometry=GEOMETRY,
        pixel_size_m=GEOMETRY.object_pixel_m,
        run_uid="light",
    )
    return replace(measurement, **changes)


def summary(measurement, model) -> dict:
    bench = Bench(ModelSlot(model), residual_share=1.0)
    from ptycho_bluesky.streaming.frames import Frame

    bench.documents(measurement_documents(measurement))
    frames = [
        Frame(i, measurement.image[i], np.nan, tuple(measurement.position_m[i]), float(measurement.i0[i]))
        for i in range(NUM)
    ]
    bench.core.frames(frames)
    return bench.core.result(bench.core.current).metadata["trust"]


def test_a_tenth_of_the_light_gives_the_same_mosaic():
    full, _ = replay_run(scan(noise=False), reader())
    tenth, _ = replay_run(scan(0.1, noise=False), reader())
    np.testing.assert_allclose(tenth.phase_rad, full.phase_rad, atol=1e-5)
    # with shot noise: a frame of 1e4 counts tells its brightness to 1 %, the mean of many better
    noisy, _ = replay_run(scan(0.1), reader())
    assert np.abs(noisy.phase_rad - full.phase_rad)[full.coverage >= 3].max() < 0.02
    unscaled, _ = replay_run(scan(0.1, monitor=False, noise=False), reader())
    assert np.abs(unscaled.phase_rad - full.phase_rad).max() > 0.2  # what the factor is for


def test_exposure_and_attenuation_stand_in_for_a_missing_monitor():
    full, _ = replay_run(scan(noise=False), reader())
    stated = {"light": {"exposure_s": 5e-4}}
    tenth, _ = replay_run(scan(0.1, monitor=False, noise=False, metadata=stated), reader())
    np.testing.assert_allclose(tenth.phase_rad, full.phase_rad, atol=1e-5)


def test_the_factor_and_its_warning_are_recorded(caplog):
    usual = summary(scan(0.1), reader())["models"]["r"]
    assert usual["light"]["factor_high"] == pytest.approx(10.0)
    assert usual["light"]["scaled_by"] == "monitor"
    assert usual["light"]["warning"] == ""
    faint = summary(scan(0.05), reader())["models"]["r"]["light"]
    assert "16" in faint["warning"]
    assert "Remedy" in caplog.text
    missing = summary(scan(0.1, monitor=False), reader())["models"]["r"]["light"]
    assert missing["frames_without_i0"] == NUM
    assert missing["factor_high"] == 1.0


def test_every_frame_has_its_residual_and_the_mosaic_their_map():
    mosaic, _ = replay_run(scan(), reader())
    residual = mosaic.frame_log["residual"]
    assert residual.shape == (NUM,)
    assert np.median(residual) == pytest.approx(1.0, abs=0.1)
    shown = mosaic.maps["residual"][mosaic.maps["residual"] > 0]
    assert shown.min() >= residual.min() - 1e-6
    assert shown.max() <= residual.max() + 1e-6


def test_a_model_without_probe_says_why_there_is_no_residual():
    plain = LoadedModel("p", Reader(truth(), {}), disc_weight((SIZE, SIZE)))
    mosaic, _ = replay_run(scan(), plain)
    assert np.isnan(mosaic.frame_log["residual"]).all()
    assert "residual" not in mosaic.maps
    assert "no probe" in summary(scan(), plain)["models"]["p"]["residual_reason"]


def test_unusual_frames_are_flagged_in_the_log_and_for_the_run():
    limits = Limits((0.001, 0.5), (0.25, 4.0), 0.5)
    model = reader(limits=limits)
    mosaic, _ = replay_run(scan(), model)
    assert not mosaic.frame_log["flag"].any()
    moved = scan(image=np.roll(scan().image, 2, axis=1))
    mosaic, _ = replay_run(moved, model)
    assert (mosaic.frame_log["flag"] != Flag.NONE).all()
    assert summary(scan(), model)["flags"] == ""
    assert "contrast" in summary(moved, model)["flags"] or "unexplained" in summary(moved, model)["flags"]


def test_saturated_and_bad_pixels_do_not_enter_the_residual():
    image = scan().image.astype(np.uint16)
    image[:, 2, 13] = 65535
    usual, _ = replay_run(scan(), reader())
    mosaic, _ = replay_run(scan(image=image), reader())
    assert np.median(mosaic.frame_log["residual"]) == pytest.approx(np.median(usual.frame_log["residual"]), abs=0.1)
    mask = np.ones((SIZE, SIZE), dtype=bool)
    mask[3, 2] = False
    hot = scan().image.copy()
    hot[:, 3, 2] = 9000
    mosaic, _ = replay_run(scan(image=hot, mask=mask), reader())
    assert np.median(mosaic.frame_log["residual"]) == pytest.approx(np.median(usual.frame_log["residual"]), abs=0.1)


class Clock:
    """Monotonic and processor time that advance as told."""

    def __init__(self):
        self.now_s = self.spent_s = 0.0

    def monotonic(self):
        return self.now_s

    def thread_time(self):
        self.spent_s += 1e-4  # between two looks: what one check costs
        return self.spent_s


@pytest.mark.parametrize(("rate", "every"), [(100.0, 1), (900.0, 1), (1500.0, 2), (9500.0, 10)])
def test_residuals_keep_to_their_share_of_the_time(monkeypatch, rate, every):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    checks = RunTrust(LIGHT, 0.1)
    counts = np.ones((1, SIZE, SIZE), dtype=np.float32)
    phase, good, checked = truth()[None], np.ones((SIZE, SIZE), bool), 0
    for _ in range(200):
        clock.now_s += 1.0 / rate
        residual, _ = checks.check(reader(), counts, phase, np.ones(1, np.float32), good, None)
        checked += int(np.isfinite(residual).sum())
    assert checks.every == every
    assert checked == pytest.approx(200 / every, abs=2)
    assert checks.summary()["residual_every"] == every


def test_a_share_of_nothing_checks_nothing():
    checks = RunTrust(LIGHT, 0.0)
    residual, flag = checks.check(
        reader(), np.ones((3, SIZE, SIZE), np.float32), np.repeat(truth()[None], 3, 0), np.ones(3, np.float32),
        np.ones((SIZE, SIZE), bool), None,
    )  # fmt: skip
    assert np.isnan(residual).all()
    assert not flag.any()
