"""Trains on a folder of label sets and saves weights and curve, once for each precision; run by torchrun, or alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.training.distributed import Ranks
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import train


def main(folder: str, out: str, *changes: str) -> None:
    values = dict(change.split("=") for change in changes)
    Path(f"{out}.pid{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    ranks = Ranks.from_environment("cpu")
    for precision in values.pop("precision").split(","):
        options = TrainOptions.create(
            architecture="lean8",
            frames_per_scan=160,
            batch_size=8,
            average_frames=64,
            checkpoint_period_s=1e-6,
            precision=precision,
            **values,
        )
        path = f"{out}.{precision}"
        result = train(Corpus(folder), options, ranks=ranks, checkpoint_dir=f"{path}.checkpoint", log_dir=f"{path}.log")
        if ranks.first:
            np.savez(f"{path}.npz", loss=result.curve["loss_rad"], **result.weights)
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
