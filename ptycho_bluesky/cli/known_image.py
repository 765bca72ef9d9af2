"""What ``reconstruct --warm-start`` names: a model, a file of `infer` or `reconstruct`, or the edge's live image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptycho_bluesky.config import Settings
    from ptycho_bluesky.reconstruction import EngineOptions
    from ptycho_bluesky.reconstruction.warm_start import WarmStart
    from ptycho_bluesky.records import Measurement, Mosaic, Reconstruction

__all__ = ["LIVE", "read_warm_start"]

LIVE = "live"
"""The mosaic that the edge stored for a run."""
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_warm_start(
    known: str, source: str, measurement: Measurement, options: EngineOptions, settings: Settings
) -> WarmStart:
    """Starting object and probe from what ``--warm-start`` names.

    Parameters
    ----------
    known : str
        `LIVE`; the path of a file that `infer` or `reconstruct` wrote; a model file, or the id of a model.
    source : str
        What is reconstructed, as it was named.
    measurement : Measurement
    options : EngineOptions
    settings : Settings

    Raises
    ------
    InputError
        There is no such image, file or model, or it is one of another area.
    """
    from ptycho_bluesky.reconstruction.warm_start import warm_start

    path = Path(known)
    if known == LIVE:
        return warm_start(measurement, _live_mosaic(source, settings), options)
    if path.is_file() and _is_hdf5(path):
        return warm_start(measurement, _stored_image(path), options)
    return _by_model(known, measurement, options, settings)


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE


def _live_mosaic(source: str, settings: Settings) -> Mosaic:
    from ptycho_bluesky.errors import InputError
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    if Path(source).exists():
        raise InputError(f"--warm-start {LIVE} beside a file", "runs have a live image", "name a model or a file")
    with TiledStore.connect(settings.tiled) as store:
        return store.read_mosaic(source).mosaic


def _stored_image(path: Path) -> Mosaic | Reconstruction:
    from ptycho_bluesky.errors import InputError
    from ptycho_bluesky.io import read_inference, read_reconstruction
    from ptycho_bluesky.io.hdf5 import has_dataset, open_file

    with open_file(path) as file:
        product = any(has_dataset(file, name) for name in ("object_array", "object"))
    if product:
        return read_reconstruction(path)
    mosaic = read_inference(path).mosaic
    if mosaic is None:
        raise InputError(f"{path}", "its inference did not come to the mosaic", "infer anew")
    return mosaic


def _by_model(known: str, measurement: Measurement, options: EngineOptions, settings: Settings) -> WarmStart:
    """Infer and stitch the scan; the model's labels lend their probe and the amplitude of a phase."""
    import numpy as np

    from ptycho_bluesky.cli.scan_source import read_model
    from ptycho_bluesky.errors import InputError
    from ptycho_bluesky.inference import load_model
    from ptycho_bluesky.models.onnx_file import read_manifest
    from ptycho_bluesky.reconstruction.warm_start import warm_start
    from ptycho_bluesky.streaming.replay import replay_run
    from ptycho_bluesky.trust.physics import read_physics

    content = read_model(known, settings)
    if isinstance(content, Path):
        content = content.read_bytes()
    side = min(measurement.image.shape[1:])
    edge = settings.edge
    loaded = load_model(
        content, edge.engine, num_threads=edge.num_threads, precision=edge.precision, image_shape=(side, side)
    )
    mosaic, _ = replay_run(measurement, loaded)
    try:
        physics = read_physics(read_manifest(content))[0]
    except InputError:
        physics = None  # a state dict or safetensors of others: weights alone
    if physics is None:
        return warm_start(measurement, mosaic, options)
    law = physics.amplitude
    return warm_start(
        measurement,
        mosaic,
        options,
        probe=physics.probe,
        amplitude_of=lambda phase: np.exp(law.offset + law.slope * phase),
    )
