"""The live plot: what it shows, and that it never ends a scan."""

from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pytest
from beamline_process import wait_for
from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import det1

from ptycho_bluesky.callbacks.live_plots import EdgePictures, LiveScan, PlacedImage, PvaImage

N = 40


def play(plot, *, taken=25):
    """Documents of a scan of N points."""
    rng = np.random.default_rng(0)
    y, x = rng.normal(0, 1e-6, (2, N)).tolist()
    plot("start", {"uid": "r", "time": 0.0, "scan_id": 7, "plan_name": "fly", "ptycho": {"scan": {"num_points": N}}})
    plot("descriptor", {"uid": "t", "name": "trajectory", "run_start": "r", "data_keys": {}})
    plot("event", {"uid": "e", "descriptor": "t", "data": {"planned_y_m": y, "planned_x_m": x}})
    plot._next_draw_s = 0.0
    plot("stream_datum", {"uid": "s/0", "descriptor": "p", "indices": {"start": 0, "stop": taken}})
    plot("stop", {"uid": "z", "run_start": "r", "exit_status": "success"})
    return np.array([y, x]).T


@pytest.fixture
def mosaic():
    image = np.full((30, 50), np.nan, dtype=np.float32)
    image[5:20, 10:40] = np.linspace(-1, 1, 30)
    return image


def test_shows_mosaic_and_progress(mosaic, tmp_path):
    plot = LiveScan(lambda: PlacedImage(mosaic))
    positions = play(plot)
    shown = plot._artists["mosaic"].get_array()
    np.testing.assert_allclose(np.ma.filled(shown, np.nan), mosaic)
    taken = np.array(plot._artists["taken"].get_data()).T
    np.testing.assert_allclose(taken, 1e6 * positions[:25, ::-1])
    title = plot._axes[1].get_title()
    assert "25 of 40" in title
    assert "success" in title
    plot.close()
    assert not plt.get_fignums()


def test_mosaic_lies_where_the_positions_are(mosaic):
    plot = LiveScan(lambda: PlacedImage(mosaic, (1e-6, -2e-6), 10e-9))
    play(plot)
    assert plot._artists["mosaic"].get_extent() == pytest.approx([-2.005, -1.505, 1.295, 0.995])
    plot.close()


def test_second_scan_clears_the_first(mosaic):
    images = [mosaic, mosaic, mosaic, mosaic[:10]]
    plot = LiveScan(lambda: PlacedImage(images[0]))
    play(plot)
    images[0] = mosaic[:20]
    play(plot, taken=3)
    assert plot._artists["mosaic"].get_array().shape == (20, 50)
    assert "3 of 40" in plot._axes[1].get_title()
    assert len(plt.get_fignums()) == 1
    plot.close()


def test_waits_for_a_mosaic(mosaic):
    plot = LiveScan(lambda: None)
    play(plot)
    assert "mosaic" not in plot._artists
    plot.close()


def test_failing_plot_does_not_end_a_scan(caplog):
    def broken():
        raise RuntimeError("no such image")

    plot = LiveScan(broken)
    run_engine = RunEngine({})
    run_engine.subscribe(plot)
    with caplog.at_level(logging.ERROR):
        assert len(run_engine(count([det1], 2))) == 1
    assert "no such image" in caplog.text
    plot.close()


def test_drawing_takes_a_bounded_share_of_the_time(mosaic):
    plot = LiveScan(lambda: PlacedImage(mosaic), period_s=0.01)
    drawn = []
    draw = plot._draw
    plot._draw = lambda: (drawn.append(1), draw())
    play(plot)
    before = len(drawn)
    for stop in range(200):
        plot("stream_datum", {"uid": f"s/{stop}", "descriptor": "p", "indices": {"start": 0, "stop": stop}})
    assert len(drawn) - before <= 1
    plot.close()


@pytest.mark.parametrize(
    ("phase", "bright", "title"),
    [
        (None, None, None),
        (None, PlacedImage(np.ones((3, 4))), "bright field"),
        (PlacedImage(np.zeros((1, 1))), PlacedImage(np.ones((3, 4)), run_uid="a"), "bright field"),
        (PlacedImage(np.full((3, 4), np.nan), run_uid="a"), PlacedImage(np.ones((3, 4)), run_uid="a"), "bright field"),
        (PlacedImage(np.ones((3, 4)), run_uid="a"), PlacedImage(np.ones((3, 4)), run_uid="a"), "live phase"),
        (PlacedImage(np.ones((3, 4)), run_uid="old"), PlacedImage(np.ones((3, 4)), run_uid="a"), "bright field"),
        (PlacedImage(np.ones((3, 4)), run_uid="a"), PlacedImage(np.zeros((1, 1)), run_uid="a"), "live phase"),
    ],
)
def test_bright_field_until_there_is_a_phase(epics_settings, phase, bright, title):
    pictures = EdgePictures(f"{epics_settings.prefix}NOBODY:")
    pictures.close()
    pictures._phase.latest = lambda: phase
    pictures._bright.latest = lambda: bright
    newest = pictures.latest()
    assert newest is None if title is None else newest.title.startswith(title)


def test_follows_another_mosaic(mosaic):
    plot = LiveScan(lambda: None)
    plot.follow(lambda: PlacedImage(mosaic))
    play(plot)
    assert plot._artists["mosaic"].get_array().shape == mosaic.shape
    plot.close()


def test_channel_that_comes_late_and_goes_away(epics_settings):
    """The edge may start behind the session and may be restarted."""
    channel = f"{epics_settings.prefix}LATE:Image"
    image = PvaImage(channel)
    try:
        assert image.latest() is None
        for value in (1.0, 2.0):
            with publishing(channel, value):
                wait_for(lambda value=value: image.latest() is not None and image.latest().image[0, 0] == value, 30)
                assert image.latest().image.shape == (3, 4)
    finally:
        image.close()


@contextmanager
def publishing(channel, value):
    """A server of one image, in a process of its own."""
    code = (
        "import sys, time, numpy, pvaccess; from pvapy.utility.adImageUtility import AdImageUtility;"
        f"image = AdImageUtility.generateNtNdArray2D(1, numpy.full((3, 4), {value}, numpy.float32));"
        f"server = pvaccess.PvaServer({channel!r}, image); time.sleep(120)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait(10)
