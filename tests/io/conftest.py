from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scan_files import Scan, simulate


@pytest.fixture(scope="session")
def scan() -> Scan:
    return simulate()
