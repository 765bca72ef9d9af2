"""The models that come with the package, and what is known of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ptycho_bluesky.errors import InputError

__all__ = ["MODELS_DIR", "shipped_model", "shipped_models"]

MODELS_DIR = Path(__file__).parent / "models"


def shipped_models() -> dict[str, Any]:
    """Provenance: corpus, recipe, command, and under ``models`` what each scores on scans that none has seen."""
    return json.loads((MODELS_DIR / "models.json").read_text())


def shipped_model(name: str) -> Path:
    """Model file of an architecture, or of its integer form (``lean16_int8``), trained on simulated 128×128 frames.

    Raises
    ------
    InputError
        There is none of this name.
    """
    path = MODELS_DIR / f"{name}.onnx"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in MODELS_DIR.glob("*.onnx")))
        raise InputError(f"model {name!r}", f"those that come with the package are {known}")
    return path
