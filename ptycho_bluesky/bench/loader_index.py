"""How long a large corpus takes to open, and in how much memory.

``python -m ptycho_bluesky.bench.loader_index FOLDER`` opens the one in a folder.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.training.label_files import write_label_set
from ptycho_bluesky.training.loading import DiskLoader, FrameStore, Schedule

__all__ = ["index_rows", "make_large_corpus", "open_corpus"]

FRAMES_A_RUN = 963
SIZE_PX = 4
BATCH, STEPS = 64, 64
MAX_START_S = 10.0


def make_large_corpus(folder: Path, num_runs: int, frames_a_run: int = FRAMES_A_RUN) -> None:
    """Files of a synthetic corpus without its catalog: copies of one file, each of another run, at another place."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    square = (frames_a_run, SIZE_PX, SIZE_PX)
    labels = LabelSet(
        image=rng.poisson(3.0, square).astype(np.uint16),
        phase_rad=rng.normal(size=square).astype(np.float32),
        amplitude=np.ones(square, np.float32),
        position_m=rng.uniform(0, 1e-6, (frames_a_run, 2)),
        frame_index=np.arange(frames_a_run),
        probe=np.ones((1, SIZE_PX, SIZE_PX), np.complex64),
        weight=np.ones((SIZE_PX, SIZE_PX), np.float32),
        pixel_size_m=1e-8,
        geometry=None,
        run_uid="run-0",
    )
    first = folder / "run-0.h5"
    write_label_set(first, labels)
    for number in range(1, num_runs):
        path = folder / f"run-{number}.h5"
        shutil.copyfile(first, path)
        with h5py.File(path, "r+") as file:
            header = json.loads(str(file.attrs["header"]))
            file.attrs["header"] = json.dumps({**header, "run_uid": f"run-{number}"})


def open_corpus(folder: Path) -> dict[str, float]:
    """Open a corpus and load its first batches, as a training does.

    Returns
    -------
    dict of str to float
        ``frames``; ``index_s`` until the entries are known, ``start_s`` until the first batch is there; ``before_mb``,
        ``start_mb`` and ``after_mb``: largest memory of the process until the corpus is opened, the first batch is
        there, and `STEPS` batches, or all there are, were read.
    """
    before_mb, began = _peak_mb(), time.perf_counter()
    corpus = Corpus(folder)
    entries = corpus.select()
    index_s = time.perf_counter() - began
    store = FrameStore([corpus.directory / entry.file for entry in entries])
    schedule = Schedule(len(store), BATCH, buffer_frames=BATCH)
    batches = iter(DiskLoader(store, schedule, read_ahead=1))
    next(batches)
    start_s, start_mb = time.perf_counter() - began, _peak_mb()
    for _ in islice(batches, STEPS - 1):
        pass
    after_mb = _peak_mb()
    return {
        "frames": float(len(store)),
        "index_s": index_s,
        "start_s": start_s,
        "before_mb": before_mb,
        "start_mb": start_mb,
        "after_mb": after_mb,
    }


def _peak_mb() -> float:
    """Largest resident memory of this process: that of `resource.getrusage` is inherited from the one that began it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status).group(1)) / 1024  # pyright: ignore[reportOptionalMemberAccess]


def index_rows(folder: Path, num_runs: int) -> list[Row]:
    """Start of a corpus of so many runs, each in a process of its own: first without a catalog, then with it.

    Memory is what opening and reading add to a process that has imported everything, beside the same of a corpus a
    hundredth as large.
    """
    small, large = folder / "small", folder / "large"
    make_large_corpus(small, max(2, num_runs // 100))
    make_large_corpus(large, num_runs)
    _in_process(small)
    little, cold, warm = _in_process(small), _in_process(large), _in_process(large)
    name = f"{warm['frames']:.0f} frames"
    return [
        Row("corpus_start", "s", "lower", warm["start_s"], None, name, MAX_START_S),
        Row("corpus_index", "s", "lower", warm["index_s"], None, name),
        Row("corpus_start_without_catalog", "s", "lower", cold["start_s"], None, name),
        Row(
            "corpus_memory",
            "MB",
            "lower",
            warm["after_mb"] - warm["before_mb"],
            little["after_mb"] - little["before_mb"],
            f"{little['frames']:.0f} frames",
        ),
    ]


def _in_process(folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "ptycho_bluesky.bench.loader_index", str(folder)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main(arguments: Sequence[str]) -> None:
    """Open the corpus in a folder and say what it took, as JSON."""
    sys.stdout.write(json.dumps(open_corpus(Path(arguments[0]))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
