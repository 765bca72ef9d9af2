"""Loading a corpus that is larger than memory: every read is planned before the first one."""

from __future__ import annotations

from ptycho_bluesky.training.loading.disk_loader import DiskLoader, LoaderCounts
from ptycho_bluesky.training.loading.ranges import FrameStore, merge_ranges
from ptycho_bluesky.training.loading.schedule import BufferPolicy, Schedule, Step, order_epochs

__all__ = [
    "BufferPolicy",
    "DiskLoader",
    "FrameStore",
    "LoaderCounts",
    "Schedule",
    "Step",
    "merge_ranges",
    "order_epochs",
]
