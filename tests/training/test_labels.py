from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from ptycho_bluesky.config import LabelSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame, apply_d4, spiral_positions_m
from ptycho_bluesky.io import read_measurement
from ptycho_bluesky.metrics import wrap
from ptycho_bluesky.reconstruction import EpieOptions, reconstruct
from ptycho_bluesky.reconstruction.evidence import Evidence, gather_evidence, stored_evidence
from ptycho_bluesky.reconstruction.half_scans import half_scan_agreement
from ptycho_bluesky.reconstruction.pixel_check import pixel_gains
from ptycho_bluesky.reconstruction.placement import with_refined_positions
from ptycho_bluesky.records import Measurement, Reconstruction
from ptycho_bluesky.simulation import Area, Experiment, SampleMap, default_geometry
from ptycho_bluesky.training.label_check import check_labels, root_poisson_variance
from ptycho_bluesky.training.labels import illumination_weight, label_gauge, make_labels

STAR = Path(__file__).parents[3] / "shared" / "data" / "siemens-star-small.npz.bz2"

GEOMETRY = default_geometry(64)
PIXEL = GEOMETRY.object_pixel_m


def measured(experiment, position, exposure_s=4e-3, seed=0):
    scan = experiment.render(position, exposure_s, seed=seed)
    n = len(position)
    return Measurement(
        image=scan.image,
        position_m=position,
        frame_index=np.arange(n) + 100,
        unique_id=np.arange(n),
        timestamp_s=np.full(n, np.nan),
        i0=scan.i0,
        geometry=GEOMETRY,
        pixel_size_m=PIXEL,
        run_uid="run-1",
        metadata={"zone_plate": experiment.plate.as_dict(), "sample": "letters"},
    )


@pytest.fixture(scope="module")
def experiment():
    return Experiment.default(64, SampleMap((Area("shapes", (0.0, 0.0), 5e-6, seed=3),), PIXEL))


@pytest.fixture(scope="module")
def measurement(experiment):
    return measured(experiment, spiral_positions_m(300, 80e-9))


@pytest.fixture(scope="module")
def small(experiment):
    return measured(experiment, spiral_positions_m(150, 90e-9))


@pytest.fixture(scope="module")
def reconstruction(measurement):
    return with_evidence(measurement, EpieOptions(iterations=25))


def with_evidence(measurement, options):
    result = reconstruct(measurement, options)
    found = gather_evidence(measurement, result, options, passes=8)
    return replace(result, provenance={**result.provenance, **found})


def judged(measurement, passes):
    result = with_evidence(measurement, EpieOptions(iterations=passes))
    return check_labels(make_labels(result, measurement), result, measurement, stored_evidence(result))


def smooth_scene(slope=(0.0, 0.0)):
    """A reconstruction whose object is an analytic function, phase from −4 to 4 rad: it wraps."""
    position = np.array([[20.0, 21.0], [20.25, 21.5], [23.6, 19.9], [30.0, 30.0]]) * PIXEL
    frame = ObjectFrame.around(position, 16, PIXEL)
    rows, cols = np.indices(frame.shape)
    row, col = ((v - 12.0) for v in (rows, cols))
    phase = 4.0 * np.sin(row / 7.0) * np.cos(col / 9.0) + slope[0] * row + slope[1] * col
    obj = (1.0 - 0.2 * np.cos(col / 5.0)) * np.exp(1j * phase)
    axis = np.arange(16) - 8
    probe = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / 20)[None].astype(complex)
    n = len(position)
    nothing = np.full(n, np.nan)
    measurement = Measurement(
        np.ones((n, 16, 16)), position, np.arange(n), np.arange(n), nothing, nothing, None, PIXEL, run_uid="smooth"
    )
    result = Reconstruction(obj, probe, position, frame, np.ones(1), None, "none", {}, "smooth",
                            {"frames_used": [0, 1, 2], "frames_held_out": [3]})  # fmt: skip
    return result, measurement


def test_patches_are_centred_at_sub_pixel_positions():
    result, measurement = smooth_scene()
    labels = make_labels(result, measurement, (9, 11))
    obj, _, _ = label_gauge(result)
    turn = obj[12, 12] / result.object[12, 12]
    at = result.frame.to_px(measurement.position_m)
    own = label_gauge(result)[0] / result.object
    for k, (row, col) in enumerate(at):
        y, x = row + np.arange(9) - 4 - 12.0, col + np.arange(11) - 5 - 12.0
        y, x = y[:, None], x[None, :]
        exact = (1.0 - 0.2 * np.cos(x / 5.0)) * np.exp(4.0j * np.sin(y / 7.0) * np.cos(x / 9.0))
        gauge_rows = np.angle(own[1, 0] / own[0, 0]), np.angle(own[0, 1] / own[0, 0])
        exact = exact * turn * np.exp(1j * (gauge_rows[0] * y + gauge_rows[1] * x))
        found = labels.amplitude[k] * np.exp(1j * labels.phase_rad[k])
        np.testing.assert_allclose(found, exact, atol=0.02)
    assert np.ptp(labels.phase_rad) > 3.0


def test_cubic_is_finer_than_linear():
    result, measurement = smooth_scene()
    fine, coarse = (make_labels(result, measurement, (9, 9), interpolation=kind) for kind in ("cubic", "linear"))
    on_grid = np.abs(wrap(fine.phase_rad[0] - coarse.phase_rad[0])).max()
    between = np.abs(wrap(fine.phase_rad[1] - coarse.phase_rad[1])).max()
    assert on_grid < 1e-4
    assert between > 10 * on_grid


def test_labels_agree_with_the_truth(experiment, measurement, reconstruction):
    labels = make_labels(reconstruction, measurement)
    assert labels.phase_rad.shape == (300, 64, 64)
    assert labels.phase_rad.dtype == labels.amplitude.dtype == np.float32
    assert labels.frame_index.tolist() == measurement.frame_index.tolist()
    assert labels.pixel_size_m == pytest.approx(PIXEL)
    truth, frame = experiment.truth()
    perfect = replace(reconstruction, object=truth, frame=frame)
    want = make_labels(perfect, measurement)
    lit = labels.weight >= 1.0
    assert 0.05 < lit.mean() < 0.5
    difference = wrap(labels.phase_rad - want.phase_rad)[:, lit]
    # No gauge is removed per patch: only what the whole scan fixes.
    assert np.sqrt(np.mean(difference**2)) < 0.06
    assert np.abs(np.mean(difference)) < 0.03
    ratio = labels.amplitude[:, lit] / want.amplitude[:, lit]
    assert np.std(ratio) < 0.05


def test_labels_do_not_depend_on_the_gauge_of_the_reconstruction(measurement, reconstruction):
    rows, cols = np.indices(reconstruction.frame.shape)
    other = replace(reconstruction, object=reconstruction.object * np.exp(1j * (2.0 + 0.11 * rows - 0.07 * cols)))
    one, two = (make_labels(r, measurement) for r in (reconstruction, other))
    lit = one.weight >= 1.0
    assert np.abs(wrap(one.phase_rad - two.phase_rad)[:, lit]).max() < 2e-3
    np.testing.assert_allclose(one.amplitude, two.amplitude, atol=5e-3)


def test_patch_shape_and_pixel_can_be_chosen(measurement, reconstruction):
    full = make_labels(reconstruction, measurement)
    small = make_labels(reconstruction, measurement, (32, 24))
    np.testing.assert_allclose(small.phase_rad, full.phase_rad[:, 16:48, 20:44], atol=1e-5)
    assert small.weight.shape == (32, 24)
    wide = make_labels(reconstruction, measurement, (32, 32), pixel_size_m=2 * PIXEL)
    assert wide.pixel_size_m == pytest.approx(2 * PIXEL)
    lit = wide.weight >= 1.0
    same = wrap(wide.phase_rad - full.phase_rad[:, ::2, ::2])[:, lit]
    assert np.sqrt(np.mean(same**2)) < 0.2
    assert wide.weight.sum() == pytest.approx(full.weight.sum() / 4, rel=0.1)


def test_labels_of_a_part_hold_only_that_part(measurement):
    rows = np.arange(40, 160)
    result = reconstruct(measurement, EpieOptions(iterations=2), rows=rows)
    labels = make_labels(result, measurement)
    assert labels.frame_index.tolist() == measurement.frame_index[rows].tolist()
    np.testing.assert_array_equal(labels.image, measurement.image[rows])


def test_unknown_pixel_stays_unknown(measurement):
    px = replace(measurement, position_m=measurement.position_m / PIXEL, pixel_size_m=None, geometry=None,
                 probe=None)  # fmt: skip
    result = reconstruct(px, EpieOptions(iterations=1), probe=np.ones((64, 64)), rows=np.arange(30))
    labels = make_labels(result, px)
    assert np.isnan(labels.pixel_size_m)
    with pytest.raises(InputError, match="pixel"):
        make_labels(result, px, pixel_size_m=1e-8)


def test_weight_is_a_filled_falling_disc(experiment):
    weight = illumination_weight(experiment.probe[None], (64, 64))
    assert weight[32, 32] == 1.0
    assert weight[0, 0] == 0.0
    assert (np.diff(weight[32, 32:]) <= 0).all()
    np.testing.assert_allclose(weight[32, 33:], weight[33:, 32], atol=1e-6)
    power = np.abs(experiment.probe) ** 2
    assert np.sum(power * (weight > 0.5)) > 0.9 * power.sum()


def test_good_labels_are_accepted(measurement, reconstruction):
    labels = make_labels(reconstruction, measurement)
    check = check_labels(labels, reconstruction, measurement, stored_evidence(reconstruction))
    assert check.accepted, check.reason
    assert check.figures["held_out_fraction"] >= 0.05
    assert check.figures["ratio"] < 1.2
    assert check.figures["explained"] > 0.9
    assert check.figures["agreement"] > 0.95
    assert check.figures["other_pixel_gain"] < -0.1


@pytest.mark.parametrize(
    ("num", "step_m", "exposure_s"), [(150, 200e-9, 4e-3), (150, 80e-9, 1e-4)], ids=["sparse", "little light"]
)
def test_other_good_labels_are_accepted_too(experiment, num, step_m, exposure_s):
    check = judged(measured(experiment, spiral_positions_m(num, step_m), exposure_s), 25)
    assert check.accepted, check.reason


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("shuffled", lambda p: np.random.default_rng(0).permutation(p)),
        ("transposed", lambda p: p[:, ::-1].copy()),
        ("late by five frames", lambda p: np.roll(p, 5, axis=0)),
    ],
)
def test_wrong_positions_are_rejected_with_a_reason(small, what, change):
    check = judged(replace(small, position_m=change(small.position_m)), 12)
    assert not check.accepted
    assert "positions" in check.reason


@pytest.mark.parametrize("operation", ["transpose", "flip_rows", "rot90"])
def test_a_wrong_orientation_is_rejected_with_a_reason(small, operation):
    turned = replace(small, image=np.ascontiguousarray(apply_d4(small.image, operation)))
    check = judged(turned, 12)
    assert not check.accepted
    assert "geometry" in check.reason


@pytest.mark.parametrize("factor", [0.8, 0.95, 1.05])
def test_a_wrong_pixel_is_rejected_with_a_reason(small, factor):
    check = judged(replace(small, pixel_size_m=factor * PIXEL, geometry=None), 12)
    assert not check.accepted
    assert "pixel" in check.reason
    assert (check.figures["other_pixel"] > 1) == (factor < 1)


def test_a_better_pixel_is_judged_by_where_it_is_and_by_what_it_gains(measurement, reconstruction):
    labels = make_labels(reconstruction, measurement)

    def check(pixel):
        evidence = replace(stored_evidence(reconstruction), pixel=pixel)
        return check_labels(labels, reconstruction, measurement, evidence)

    # best at 1.025, no tried one gains
    assert check({0.95: (-15.0, -0.05), 1.05: (0.0, 0.0)}).accepted
    # best near 0.94: little gained, and clearly
    rejected = check({0.9: (6.0, 0.025), 0.95: (14.0, 0.036), 1.05: (-18.0, -0.06)})
    assert not rejected.accepted
    assert rejected.figures["other_pixel"] == pytest.approx(0.936, abs=0.002)
    assert "0.94 times" in rejected.reason
    # as far away, and of too few frames to say so
    gains = {0.9: (6.0, 0.025), 0.95: (14.0, 0.036), 1.05: (-18.0, -0.06)}
    evidence = replace(stored_evidence(reconstruction), pixel=gains)
    few = check_labels(labels, reconstruction, measurement, evidence, LabelSettings(pixel_frames=1000))
    assert few.accepted
    # as far away, and within the noise
    assert check({0.9: (0.5, 0.001), 0.95: (0.9, 0.002), 1.05: (-1.0, -0.002)}).accepted
    # near, and much gained
    assert not check({0.95: (-9.0, -0.2), 1.05: (9.0, 0.06)}).accepted


@pytest.mark.skipif(not STAR.exists(), reason=f"real scan {STAR} is not there")
@pytest.mark.parametrize(("factor", "accepted"), [(0.9, False), (1.0, True), (1.1, False)])
def test_a_wrong_pixel_of_the_real_star_is_rejected(factor, accepted):
    star = read_measurement(STAR)
    stated = replace(star, position_m=star.position_m / factor, probe=None)
    result = reconstruct(stated, EpieOptions(iterations=25))
    pixel = pixel_gains(stated, result, EpieOptions())
    evidence = Evidence(half_scan_agreement(stated, result, EpieOptions(), passes=8), pixel)
    check = check_labels(make_labels(result, stated, (16, 16)), result, stated, evidence)
    assert check.accepted == accepted, check.reason
    if not accepted:
        assert "pixel" in check.reason
        assert (check.figures["other_pixel"] > 1) == (factor < 1)


@pytest.mark.skipif(not STAR.exists(), reason=f"real scan {STAR} is not there")
def test_the_real_star_is_accepted_and_its_shuffled_frames_are_not():
    star = read_measurement(STAR, limit=160)
    good = with_evidence(star, EpieOptions(iterations=30))
    check = check_labels(make_labels(good, star, (64, 64)), good, star, stored_evidence(good))
    assert check.accepted, check.reason
    assert check.figures["agreement"] > 0.85
    shuffled = replace(star, position_m=np.random.default_rng(0).permutation(star.position_m))
    bad = reconstruct(shuffled, EpieOptions(iterations=3))
    check = check_labels(make_labels(bad, shuffled, (64, 64)), bad, shuffled, stored_evidence(good))
    assert not check.accepted
    assert "variation" in check.reason


def test_positions_too_far_apart_are_rejected_by_the_ratio(experiment):
    check = judged(measured(experiment, spiral_positions_m(80, 400e-9)), 40)
    assert not check.accepted
    assert "held-out" in check.reason


def test_limits_are_stated(measurement, reconstruction):
    labels, evidence = make_labels(reconstruction, measurement), stored_evidence(reconstruction)

    def reason(limits=None, evidence=evidence, labels=labels):
        check = check_labels(labels, reconstruction, measurement, evidence, limits)
        assert not check.accepted
        return check.reason

    assert "times that of used ones" in reason(LabelSettings(max_ratio=1.0))
    assert "half-scans correlate by" in reason(LabelSettings(min_agreement=1.0))
    assert "compared" in reason(evidence=Evidence(None, {}))
    assert "1.04 times" in reason(evidence=replace(evidence, pixel={0.96: (-3.0, -0.1), 1.04: (9.0, 0.08)}))
    assert "finite" in reason(labels=replace(labels, phase_rad=np.full_like(labels.phase_rad, np.nan)))


def test_refined_positions_are_those_of_the_labels(experiment):
    position = spiral_positions_m(150, 90e-9)
    jitter = np.random.default_rng(1).normal(0.0, 1.0, position.shape) * PIXEL
    shaken = replace(measured(experiment, position), position_m=position + jitter)
    options = EpieOptions(iterations=30, correct_positions=True, position_start=5)
    result = with_evidence(shaken, options)
    labels = make_labels(result, shaken)
    placed = with_refined_positions(shaken, result)
    np.testing.assert_array_equal(labels.position_m, placed.position_m)
    away = (labels.position_m - position) / PIXEL
    away -= away.mean(axis=0)
    held_out = np.isin(labels.frame_index, result.provenance["frames_held_out"])
    assert held_out.sum() >= 7
    for rows in (held_out, ~held_out):
        # a common shift is a gauge, of the held-out frames by themselves as well
        assert np.sqrt(np.mean((away[rows] - away[rows].mean(axis=0)) ** 2)) < 0.3
    check = check_labels(labels, result, shaken, stored_evidence(result))
    assert check.accepted, check.reason
    assert labels.provenance["positions"] == "refined"
    assert labels.provenance["sample"] == "letters"


def test_what_cannot_be_judged_is_refused(measurement, reconstruction):
    labels = make_labels(reconstruction, measurement)
    none_left_out = reconstruct(measurement, EpieOptions(iterations=1, holdout_fraction=0.0))
    with pytest.raises(InputError, match="holdout_fraction"):
        check_labels(labels, none_left_out, measurement, Evidence(None, {}))
    with pytest.raises(InputError, match="one run"):
        check_labels(replace(labels, run_uid="other"), reconstruction, measurement, Evidence(None, {}))
    with pytest.raises(InputError, match="not in the measurement"):
        make_labels(reconstruction, replace(measurement, frame_index=np.arange(300)))
    with pytest.raises(InputError, match="frames_used"):
        make_labels(replace(reconstruction, provenance={}), measurement)
    with pytest.raises(InputError, match="patch_shape"):
        make_labels(reconstruction, measurement, (0, 5))


@pytest.mark.parametrize("mean", [0.0, 0.05, 0.7, 3.0, 11.9, 12.1, 400.0])
def test_variance_of_the_root_of_poisson_counts(mean):
    counts = np.arange(2000)
    probability = scipy.stats.poisson.pmf(counts, mean)
    root = np.sum(probability * np.sqrt(counts))
    assert root_poisson_variance(mean) == pytest.approx(mean - root**2, abs=3e-3)
