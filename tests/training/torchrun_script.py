"""Trains on a folder of label sets and saves weights and curve; run by torchrun, or alone."""

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
    options = TrainOptions.create(
        architecture="lean8", frames_per_scan=160, batch_size=8, average_frames=64, checkpoint_period_s=1e-6, **values
    )
    Path(f"{out}.pid{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    ranks = Ranks.from_environment("cpu")
    result = train(Corpus(folder), options, ranks=ranks, checkpoint_dir=f"{out}.checkpoint", log_dir=f"{out}.log")
    if ranks.first:
        np.savez(out, loss=result.curve["loss_rad"], **result.weights)
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
