"""Sphinx configuration."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _generate import generate

from ptycho_bluesky import __version__

generate()

project = "ptycho_bluesky"
author = "the ptycho_bluesky developers"
copyright = "2026, the ptycho_bluesky developers"  # noqa: A001
release = version = __version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinxcontrib.mermaid",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
html_theme = "furo"
html_title = "ptycho_bluesky"
exclude_patterns = ["_build"]
nitpicky = False


def _plain_bars(app, what, name, obj, options, lines):
    """Docstrings write |x| for magnitudes, which reStructuredText would take for substitutions."""
    lines[:] = [re.sub(r"(?<!\\)\|", r"\\|", line) for line in lines]
    if what == "module":
        # A section title in a module's docstring would become a target of the page, once for every module.
        for i in range(len(lines) - 1):
            if lines[i] and set(lines[i + 1]) == {"-"}:
                lines[i : i + 2] = [f"**{lines[i]}**", ""]


def setup(app):
    """Register the hook before numpydoc's."""
    app.connect("autodoc-process-docstring", _plain_bars, priority=100)
