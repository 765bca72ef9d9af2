"""Sphinx configuration."""

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
