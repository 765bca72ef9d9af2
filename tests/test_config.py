"""Settings come from file, environment and flags, in that order of strength."""

from __future__ import annotations

import pytest

from ptycho_bluesky.config import load_settings
from ptycho_bluesky.errors import InputError


def test_environment_wins_over_file_and_flags_over_both(tmp_path, monkeypatch):
    file = tmp_path / "config.yml"
    file.write_text("edge: {batch_size: 3, deadline_s: 0.5}\ntiled: {uri: 'http://file'}\n")
    monkeypatch.setenv("PTYCHO_BLUESKY_EDGE__BATCH_SIZE", "5")
    monkeypatch.setenv("PTYCHO_BLUESKY_TILED__URI", "http://environment")
    settings = load_settings(file, {"tiled.uri": "http://flag", "edge.engine": None})
    assert (settings.edge.batch_size, settings.edge.deadline_s) == (5, 0.5)
    assert settings.tiled.uri == "http://flag"


@pytest.mark.parametrize(
    ("text", "named"),
    [("edge: {batch_size: 0}", "edge.batch_size"), ("edge: {batchsize: 1}", "edge.batchsize"), ("nonsense: 1", "nons")],
)
def test_errors_name_the_key(tmp_path, text, named):
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(InputError, match=named):
        load_settings(file)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yml"):
        load_settings(tmp_path / "absent.yml")
    (tmp_path / "broken.yml").write_text("a: [")
    with pytest.raises(InputError, match=r"broken\.yml"):
        load_settings(tmp_path / "broken.yml")


def test_written_settings_read_back_and_are_private(tmp_path):
    settings = load_settings(flags={"data_dir": tmp_path / "data", "tiled.api_key": "abc123"})
    file = tmp_path / "config.yml"
    settings.to_yaml(file)
    assert file.stat().st_mode & 0o077 == 0
    assert load_settings(file).tiled.api_key.get_secret_value() == "abc123"
