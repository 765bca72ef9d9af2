"""Reading frames with a network: engines, the loaded model, and its exchange while frames arrive."""

from __future__ import annotations

from ptycho_bluesky.inference.engine import Engine, LoadedModel, check_model
from ptycho_bluesky.inference.load import load_engine, load_model
from ptycho_bluesky.inference.slot import ModelSlot

__all__ = ["Engine", "LoadedModel", "ModelSlot", "check_model", "load_engine", "load_model"]
