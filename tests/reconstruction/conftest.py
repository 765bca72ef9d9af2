from __future__ import annotations

import pytest
from known_scans import KnownScan, known_scan


@pytest.fixture(scope="session")
def clean_scan() -> KnownScan:
    return known_scan(320, 75e-9)


@pytest.fixture(scope="session")
def noisy_scan() -> KnownScan:
    return known_scan(320, 75e-9, exposure_s=2e-3, seed=1)
