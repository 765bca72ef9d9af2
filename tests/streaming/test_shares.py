"""Several edges on one stream: each accounts for its share, and together they have what one would have."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from ptycho_bluesky.cli.main import build_app
from ptycho_bluesky.config import EdgeSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import ModelSlot
from ptycho_bluesky.records import FrameOrigin
from ptycho_bluesky.streaming.closing import ClosingOptions, read_file
from ptycho_bluesky.streaming.core import EdgeCore
from ptycho_bluesky.streaming.merging import merge_results, share_dir
from ptycho_bluesky.streaming.spool import Spool

from .test_core import model

QUICK = ClosingOptions(settle_s=0.0, drain_s=0.0, wait_s=1.0, grace_s=0.0, poll_s=0.0)


def result_of(run, share, frames=None):
    """What an edge with this share has of a run of which the stream delivered ``frames``."""
    results = []
    core = EdgeCore(ModelSlot(model()), closing=QUICK, wall_clock=False, share=share, on_closed=results.append)
    for name, doc in run.all_documents()[:-1]:
        core.document(name, doc)
    core.frames(run.frames if frames is None else frames)
    core.document(*run.stop)
    for _ in range(200):
        core.tick(stream_empty=True)
        while core.requests:
            core.file_reply(read_file(core.requests.popleft()))
        if results:
            return results[0]
    raise AssertionError("the run was not closed")


@pytest.mark.parametrize("edges", [2, 3])
@pytest.mark.parametrize("options", [{}, {"pauses": (13, 25)}, {"pauses": (13,), "reset": True}])
def test_shares_add_up_to_the_whole(fake_run, edges, options):
    run = fake_run(**options)
    run.write_file()
    whole = result_of(run, (0, 1))
    parts = [result_of(run, (k, edges)) for k in range(edges)]
    assert sum(part.counts.generated for part in parts) == 40
    assert all(part.counts.lost == part.counts.unaccounted == part.counts.missed == 0 for part in parts)
    merged = merge_results(parts)
    assert merged.counts == whole.counts
    np.testing.assert_array_equal(merged.mosaic.frame_log["frame_index"], np.arange(40))
    np.testing.assert_array_equal(merged.mosaic.coverage.sum(), whole.mosaic.coverage.sum())
    assert merged.complete


def test_each_edge_recovers_its_own_frames_alone(fake_run):
    run = fake_run()
    run.write_file()
    parts = [result_of(run, (k, 2), run.frames[:20]) for k in range(2)]
    for k, part in enumerate(parts):
        assert (part.counts.generated, part.counts.received, part.counts.recovered, part.counts.lost) == (20, 10, 10, 0)
        assert (part.mosaic.frame_log["unique_id"] % 2 == k).all()
        assert (part.mosaic.frame_log["origin"] == FrameOrigin.FILE).sum() == 10
    assert merge_results(parts).counts.recovered == 20


def test_shares_that_overlap_are_refused(fake_run):
    run = fake_run()
    run.write_file()
    with pytest.raises(InputError, match="once"):
        merge_results([result_of(run, (0, 1)), result_of(run, (1, 2))])
    with pytest.raises(InputError, match="below"):
        _ = EdgeSettings(share_index=2, share_count=2).share


def test_the_command_merges_what_the_edges_left(fake_run, tmp_path):
    run = fake_run()
    run.write_file()
    for k in range(2):
        Spool(share_dir(tmp_path / "data" / "edge", (k, 2))).write(result_of(run, (k, 2)))
    arguments = ["merge", run.uid, "--edges", "2", "--no-tiled", "--data-dir", str(tmp_path / "data")]
    done = CliRunner().invoke(build_app(), [*arguments, "--out", str(tmp_path / "merged.png")])
    assert done.exit_code == 0, done.output
    assert "40 generated, 40 inferred" in done.output
    assert Spool(tmp_path / "data" / "edge").read(run.uid).counts.inferred == 40
    assert (tmp_path / "merged.png").stat().st_size > 0
    with pytest.raises(InputError, match="0 runs"):
        CliRunner().invoke(build_app(), ["merge", "nothing", *arguments[2:]], catch_exceptions=False)


def test_a_share_is_given_as_k_of_n(tmp_path):
    with pytest.raises(InputError, match="K from 0"):
        CliRunner().invoke(build_app(), ["edge", "--modulo", "2/2"], catch_exceptions=False)
