"""Style, types, layers and documentation are part of the suite, so that one command checks everything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; install the extra 'test' (or 'docs')")
    return found


def test_style_is_clean():
    _run(_tool("ruff"), "check", ".")


def test_format_is_clean():
    _run(_tool("ruff"), "format", "--check", ".")


def test_layers_hold():
    _run(_tool("lint-imports"))


def test_types_check():
    # The interpreter is named: pyright would otherwise ask the first `python` of PATH for the libraries.
    _run(_tool("pyright"), "--pythonpath", sys.executable)


def test_documentation_builds_without_a_warning(tmp_path):
    _run(_tool("sphinx-build"), "-W", "--keep-going", "-b", "html", "docs", str(tmp_path))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ptycho_bluesky.cli.main import build_app; build_app();"
        "heavy = {'torch', 'ophyd', 'tiled', 'bluesky', 'caproto', 'pvaccess'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    _run(sys.executable, "-c", code)


def test_metadata_names_the_extras():
    from importlib.metadata import metadata

    extras = set(metadata("ptycho_bluesky").get_all("Provides-Extra") or [])
    assert {"epics", "databroker", "onnx", "openvino", "tensorrt", "codecs", "hpc", "test", "docs"} <= extras
