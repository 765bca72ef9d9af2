"""The models of the live bench, and a local registry that serves them to its edges."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ptycho_bluesky.bench.shipped import shipped_model, shipped_models
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.engine import read_model_file
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import read_manifest, to_onnx
from ptycho_bluesky.records import ModelRecord, ModelStage
from ptycho_bluesky.training.registry import LocalModelStore, content_id

__all__ = ["BenchModel", "published", "register", "shipped", "untrained"]

NETWORK = "ptychonn2"
TOLERANCE = 0.01


@dataclass(frozen=True)
class BenchModel:
    """A model file and what to call it.

    Attributes
    ----------
    name : str
    content : bytes
    """

    name: str
    content: bytes

    @property
    def model_id(self) -> str:
        """Hash of the content."""
        return content_id(self.content)

    def write(self, folder: Path) -> Path:
        """Write the file."""
        path = folder / f"{self.model_id[:12]}.onnx"
        path.write_bytes(self.content)
        return path

    @classmethod
    def read(cls, path: Path, size_px: int) -> BenchModel:
        """Model of a file; one without manifest is wrapped for frames of this size."""
        content = read_model_file(path, (size_px, size_px))
        manifest = read_manifest(content)
        if tuple(manifest["image_shape"]) != (size_px, size_px):
            raise InputError(f"model {path}", f"it reads frames of {manifest['image_shape']}, not of {size_px} pixels")
        return cls(f"{path.stem} ({manifest.get('architecture', 'foreign')})", content)


def untrained(architecture: str, size_px: int, seed: int = 0) -> BenchModel:
    """A network with random weights: as fast as a trained one, its image means nothing."""
    import torch

    torch.manual_seed(seed)
    manifest = {"architecture": architecture}
    content = to_onnx(build(architecture), (size_px, size_px), 1.0, {"sqrt": True, "scale": 0.1}, manifest)
    return BenchModel(f"{architecture} (untrained)", content)


def shipped(size_px: int) -> BenchModel | None:
    """The fastest lean model of the package for this size that is as good as PtychoNN 2.0; None without any.

    As good: its mosaic of the held-out scan has a similarity at most `TOLERANCE` under that of PtychoNN 2.0 trained on
    the same data. Of those the one with the fewest weights; where none is good enough, the best one.
    """
    scores = {name: entry["held_out"]["ssim"] for name, entry in shipped_models()["models"].items()}
    paths = [shipped_model(name) for name in scores if name.startswith("lean")]
    fitting = [path for path in paths if tuple(read_manifest(path.read_bytes())["image_shape"]) == (size_px, size_px)]
    if not fitting:
        return None
    good = [path for path in fitting if scores[path.stem] >= scores.get(NETWORK, -1.0) - TOLERANCE]
    if good:
        return BenchModel.read(min(good, key=lambda path: path.stat().st_size), size_px)
    return BenchModel.read(max(fitting, key=lambda path: scores[path.stem]), size_px)


def published(weights: Path | None, size_px: int) -> BenchModel:
    """PtychoNN 2.0 with the published weights, or with random ones when no file is given."""
    if weights is None:
        return untrained(NETWORK, size_px)
    return BenchModel(f"PtychoNN 2.0 ({weights.name})", read_model_file(weights, (size_px, size_px)))


def register(model: BenchModel, store: LocalModelStore, *, promote: bool = True) -> None:
    """Put a model into a registry, and let it serve."""
    manifest = read_manifest(model.content)
    record = ModelRecord(
        model_id=model.model_id,
        parent_id="",
        stage=ModelStage.CANDIDATE,
        architecture=str(manifest.get("architecture", "")),
        image_shape=tuple(manifest["image_shape"]),
        patch_shape=tuple(manifest["patch_shape"]),
        pixel_size_m=float(manifest.get("pixel_size_m") or "nan"),
        count_scale=float(manifest.get("count_scale", 1.0)),
        training_runs=(),
        recipe={},
        validation={},
        geometry=None,
        regime={},
        created_s=time.time(),
    )
    store.put(record, model.content)
    if promote:
        store.set_stage(model.model_id, ModelStage.PROMOTED, "bench")
