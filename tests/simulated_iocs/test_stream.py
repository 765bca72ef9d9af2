"""The detector that does nothing but stream: numbers, times and positions of what it publishes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pvaccess")

from ptycho_bluesky.streaming.sources_pva import frame_of
from simulated_iocs.stream import FrameStream, StreamCommand


class Server:
    """Takes what is published."""

    def __init__(self):
        self.frames = []

    def addRecord(self, channel, array):  # noqa: N802 - pvapy's name
        self.channel = channel

    def updateUnchecked(self, channel, array):  # noqa: N802 - pvapy's name
        self.frames.append(frame_of(array.copy(), channel, 0.0))


def test_frames_leave_in_order_with_the_time_of_their_own_end():
    image = np.arange(3 * 16, dtype=np.uint16).reshape(3, 4, 4)
    position_m = np.array([[1e-6, 2e-6], [3e-6, 4e-6], [5e-6, 6e-6]])
    server = Server()
    stream = FrameStream(server, "channel", image, position_m, np.array([1.0, 2.0, 3.0]))
    report = stream.run(StreamCommand(first_id=10, count=7, period_s=0.002))
    assert report.count == 7
    assert report.seconds >= 7 * 0.002
    assert [frame.unique_id for frame in server.frames] == list(range(10, 17))
    times = np.array([frame.timestamp_s for frame in server.frames])
    np.testing.assert_allclose(times, report.begun_s + 0.002 * np.arange(1, 8), atol=1e-6)
    for k, frame in enumerate(server.frames):
        np.testing.assert_array_equal(frame.image, image[k % 3])
        assert frame.position_m == tuple(position_m[k % 3])
        assert frame.i0 == k % 3 + 1.0
        assert not frame.fault


def test_a_clock_that_is_late_catches_up_and_says_so():
    server = Server()
    stream = FrameStream(server, "c", np.zeros((1, 4, 4), np.uint16), np.zeros((1, 2)), np.ones(1))
    report = stream.run(StreamCommand(1, 200, 1e-7))
    assert len(server.frames) == 200
    assert report.latest_s > 0
