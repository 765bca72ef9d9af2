"""The regimes that a worker has met: geometry and probe of the run that founded each, in a small file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.regime import KnownProbe, assign_regime
from ptycho_bluesky.workflow.files import write_bytes
from ptycho_bluesky.workflow.run_state import RunFolder, RunState

__all__ = ["Regimes"]


class Regimes:
    """Regimes in ``worker_dir/regimes``, one file each.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.worker_dir / "regimes"
        self._threshold = settings.worker.probe_similarity

    def known(self) -> list[KnownProbe]:
        """Every regime, in the order of their names."""
        found = []
        for path in sorted(self._folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                found.append(KnownProbe(path.stem, json.loads(str(file["geometry"])), file["probe"]))
        return found

    def assign(self, folder: RunFolder, state: RunState) -> dict[str, Any] | None:
        """Regime of a run by its labels' probe; a new one is kept.

        Returns
        -------
        dict or None
            ``key``, ``founded``, and ``figures`` with the similarities; None where the labels hold no probe.
        """
        try:
            with h5py.File(folder.labels, "r") as file:
                probe = np.asarray(file["probe"])
            match = assign_regime(state.uid, state.regime, probe, self.known(), self._threshold)
        except (OSError, KeyError, InputError):
            return None
        if match.founded:
            geometry = {name: state.regime.get(name) for name in ("image_shape", "pixel_size_m")}
            buffer = io.BytesIO()
            np.savez(buffer, probe=probe, geometry=np.array(json.dumps(geometry)))
            write_bytes(self._path(state.uid), buffer.getvalue())
        others = {key: round(value, 4) for key, value in match.others.items()}
        figures = {"probe_similarity": match.similarity, "probe_similarities": others}
        return {"key": match.key, "founded": match.founded, "figures": figures}

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"
