"""The report's rows say what they mean."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from ptycho_bluesky.bench.rows import Row, print_table, table, write_report


@pytest.mark.parametrize(("better", "ours", "baseline", "ratio"), [("higher", 4.0, 2.0, 2.0), ("lower", 2.0, 4.0, 2.0)])
def test_ratio_above_one_means_ours_is_better(better, ours, baseline, ratio):
    assert Row("m", "s", better, ours, baseline, "other").ratio == ratio


def test_passed_comes_from_target_and_direction_alone():
    assert Row("m", "1", "higher", 0.5, target=0.6).passed is False
    assert Row("m", "1", "lower", 0.0, target=0.0).passed is True
    assert Row("m", "1", "lower", 0.0).passed is None
    assert Row("m", "1", "lower", 0.0, baseline=1.0).ratio is None


def test_report_is_strict_json_with_every_key(tmp_path):
    path = tmp_path / "report.json"
    write_report(path, "rows", [Row("m", "s", "lower", 1.0, 2.0, "other", 3.0)], note="x")
    content = json.loads(path.read_text())
    assert {"name", "hardware", "versions", "rows", "note"} <= set(content)
    assert set(content["rows"][0]) == {
        "metric", "unit", "better", "ours", "baseline", "baseline_name", "target", "ratio", "passed",
    }  # fmt: skip
    assert {"cpu", "vector_flags", "cores", "load_average", "gpu"} <= set(content["hardware"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(path, "rows", [Row("m", "s", "lower", float("nan"))])


def test_table_has_a_line_a_row():
    assert table([Row("m", "s", "lower", 1.0), Row("n", "1", "higher", 1.0, 0.5, "b", 2.0)]).row_count == 2


def test_in_a_file_a_table_is_as_wide_as_it_needs():
    file = io.StringIO()
    print_table([Row("a_metric_with_a_long_name_" * 2, "s", "lower", 1.0, 2.0, "other", 3.0)], "t", Console(file=file))
    assert "a_metric_with_a_long_name_" * 2 in file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_numbers_are_never_cut_and_baselines_are_named(width):
    rows = [
        Row("a_metric_with_a_long_name_per_s", "frames/s", "higher", 12345.678, 1234.5678, "another reader", 98765.0),
        Row("another_metric_with_a_long_name", "frames/s", "lower", 0.012345, 0.98765, "a third reader"),
    ]
    with (console := Console(width=width)).capture() as captured:
        console.print(table(rows, "title"))
    text = captured.get()
    assert "…" not in text
    for part in ("1.235e+04", "1235 (1)", "10.00×", "≥ 9.876e+04", "0.01235", "0.9877 (2)", "80.00×"):
        assert part in text
    assert "(1) another reader" in text
    assert "(2) a third reader" in text
