"""Every frame is accounted for, through the real processes, whatever the stream, the file or the detector do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Ten scans by real processes: some three minutes on two idle cores, more on busy ones.
pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

POINTS = 400
SCENARIOS = (
    "plain",
    "stream_drops_5_percent",
    "file_drops_1_percent",
    "stream_duplicates",
    "stream_corrupts",
    "id_reset_at_arm",
    "id_not_reset_at_arm",
    "rearmed_id_reset",
    "rearmed_id_not_reset",
    "edge_starts_half_way",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("accounting")
    script = Path(__file__).parent / "scenarios.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *SCENARIOS], capture_output=True, text=True, timeout=840, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_or_unaccounted(found, name):
    counts = found[name]["counts"]
    assert counts["generated"] == POINTS
    assert counts["lost"] == 0
    assert counts["unaccounted"] == 0
    assert counts["inferred"] + counts["rejected"] == POINTS
    assert counts["missed"] == counts["generated"] - counts["received"]
    assert found[name]["exit_status"] == "success"


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_frame_has_one_row_in_the_log(found, name):
    assert sorted(found[name]["frame_index"]) == list(range(POINTS))


def test_a_quiet_stream_misses_nothing(found):
    counts = found["plain"]["counts"]
    assert (counts["missed"], counts["duplicates"], counts["rejected"]) == (0, 0, 0)


def test_what_the_stream_drops_is_recovered_from_the_file(found):
    counts = found["stream_drops_5_percent"]["counts"]
    assert counts["missed"] == counts["recovered"] > 0


def test_what_the_file_drops_came_by_the_stream(found):
    assert found["file_drops_1_percent"]["rows_read"] < POINTS
    assert found["file_drops_1_percent"]["counts"]["missed"] == 0


def test_duplicates_are_counted_apart(found):
    assert found["stream_duplicates"]["counts"]["duplicates"] > 0


def test_frames_damaged_on_the_stream_are_read_from_the_file(found):
    counts = found["stream_corrupts"]["counts"]
    assert counts["inferred"] == POINTS
    assert counts["rejected"] == 0


@pytest.mark.parametrize("name", ["rearmed_id_reset", "rearmed_id_not_reset"])
def test_a_paused_scan_is_armed_again(found, name):
    assert found[name]["segments"] == 2
    assert found["plain"]["segments"] == 1


def test_an_edge_that_came_late_recovers_what_it_missed(found):
    counts = found["edge_starts_half_way"]["counts"]
    assert counts["inferred"] == POINTS
    assert counts["received"] > 0
    assert counts["missed"] == counts["recovered"] > 0
