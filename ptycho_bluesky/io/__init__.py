"""Readers and writers of files, one module a format."""

from ptycho_bluesky.io.growing_file import GrowingFile
from ptycho_bluesky.io.measurement import read_measurement, validate_measurement
from ptycho_bluesky.io.products import (
    InferenceWriter,
    StoredInference,
    read_inference,
    read_reconstruction,
    write_reconstruction,
)

__all__ = [
    "GrowingFile",
    "InferenceWriter",
    "StoredInference",
    "read_inference",
    "read_measurement",
    "read_reconstruction",
    "validate_measurement",
    "write_reconstruction",
]
