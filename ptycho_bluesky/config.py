"""Settings: one YAML file, then the environment (``PTYCHO_BLUESKY_*``), then flags; validated, errors name the key.

Nested keys are separated by two underscores in the environment: ``PTYCHO_BLUESKY_TILED__URI=http://…``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry

__all__ = [
    "DetectorSettings",
    "EdgeSettings",
    "EpicsSettings",
    "GeometrySettings",
    "LabelSettings",
    "ReconstructSettings",
    "Settings",
    "TiledSettings",
    "TrainSettings",
    "WorkerSettings",
    "ZmqSettings",
    "load_calibration",
    "load_settings",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class EpicsSettings(_Section):
    """Process variables and the ports on which they are found."""

    prefix: str = Field(default="PTY:", description="Prefix of the beamline's process variables.")
    control_layer: Literal["caproto", "pyepics"] = Field(
        default="caproto", description="ophyd's Channel Access client."
    )
    ca_server_port: int = Field(default=5064, ge=1, le=65535)
    ca_repeater_port: int = Field(default=5065, ge=1, le=65535)
    pva_server_port: int = Field(default=5075, ge=1, le=65535)
    pva_broadcast_port: int = Field(default=5076, ge=1, le=65535)
    loopback: bool = Field(default=True, description="Search and serve on this machine only.")

    def environment(self) -> dict[str, str]:
        """Environment variables for clients and servers; set them before importing ophyd, caproto or pvaccess."""
        env = {
            "OPHYD_CONTROL_LAYER": self.control_layer,
            "EPICS_CA_SERVER_PORT": str(self.ca_server_port),
            "EPICS_CAS_SERVER_PORT": str(self.ca_server_port),
            "EPICS_CA_REPEATER_PORT": str(self.ca_repeater_port),
            "EPICS_CA_MAX_ARRAY_BYTES": "100000000",
            "EPICS_PVA_BROADCAST_PORT": str(self.pva_broadcast_port),
            "EPICS_PVAS_BROADCAST_PORT": str(self.pva_broadcast_port),
            "EPICS_PVA_SERVER_PORT": str(self.pva_server_port),
            "EPICS_PVAS_SERVER_PORT": str(self.pva_server_port),
        }
        if self.loopback:
            # Channel Access needs the loopback broadcast address to reach several servers on one host, pvAccess the
            # plain address: a unicast CA search goes to one of them only.
            env |= {
                "EPICS_CA_ADDR_LIST": "127.255.255.255",
                "EPICS_CA_AUTO_ADDR_LIST": "NO",
                "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1 127.255.255.255",
                "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
                "EPICS_CAS_BEACON_ADDR_LIST": "127.255.255.255",
                "EPICS_PVA_ADDR_LIST": "127.0.0.1",
                "EPICS_PVA_AUTO_ADDR_LIST": "NO",
                "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
            }
        return env

    def apply(self) -> None:
        """Set `environment` in this process."""
        os.environ.update(self.environment())


class TiledSettings(_Section):
    """The Tiled server and where things lie in it."""

    uri: str = "http://127.0.0.1:8000"
    api_key: SecretStr = Field(default=SecretStr("ptychosecret"), description="Alphanumeric.")
    raw: str = "raw"
    results: str = "results"
    labels: str = "labels"
    models: str = "models"
    decisions: str = "decisions"
    timeout_s: float = Field(default=20.0, gt=0)


class ZmqSettings(_Section):
    """Addresses of the document proxy (msgpack, never pickle)."""

    publish: str = Field(default="127.0.0.1:5577", description="Where sessions publish documents to.")
    subscribe: str = Field(default="127.0.0.1:5578", description="Where edges subscribe to.")


class GeometrySettings(_Section):
    """Geometry of the measurement; unset values are taken from the beamline or the file, never invented."""

    energy_eV: float | None = Field(default=None, gt=0)
    distance_m: float | None = Field(default=None, gt=0)
    detector_pixel_m: float | None = Field(default=None, gt=0)
    orientation: str = "identity"
    object_pixel_m: float | None = Field(
        default=None, gt=0, description="Pixel at the sample, stated where the geometry is unknown."
    )

    def geometry(self, num_px: int) -> Geometry | None:
        """Geometry of frames of ``num_px`` pixels, None when anything is unset."""
        if self.energy_eV is None or self.distance_m is None or self.detector_pixel_m is None:
            return None
        return Geometry(self.energy_eV, self.distance_m, self.detector_pixel_m, num_px, self.orientation)


class DetectorSettings(_Section):
    """How the detector's frames become canonical; ``ptycho-bluesky calibrate`` measures and writes it."""

    centre_px: tuple[int, int] | None = Field(
        default=None, description="Row and column of the zero frequency; the middle of the frame where unset."
    )
    num_px: int | None = Field(
        default=None, ge=2, description="Side of the region of interest; the largest square where unset."
    )
    mask_file: Path | None = Field(
        default=None, description="Bad pixels: .npy, image, or HDF5 with 'pixel_mask'; what is not 0 is bad."
    )
    saturation_counts: float | None = Field(
        default=None, gt=0, description="Counts from which on a pixel is not trusted; the type's largest never is."
    )
    i0_integrates: bool = Field(default=True, description="Whether I0 counts during each exposure; else it is a rate.")
    i0_behind_attenuator: bool = Field(default=True, description="Whether I0 sees what the attenuator lets through.")


class EdgeSettings(_Section):
    """The inference consumer."""

    prefix: str = Field(default="PTY:edge1:", description="Prefix of the process variables that the edge serves.")
    engine: Literal[
        "auto", "torch", "torch-cuda", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt"
    ] = Field(default="auto", description="auto: the fastest on this machine that reads the same phase.")
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        default="auto", description="auto: what the engine computes fastest; int8 only once it was accepted."
    )
    num_threads: int = Field(
        default=1,
        ge=1,
        description="CPU threads; more only pays on idle cores: waiting threads spin, ten times slower.",
    )
    batch_size: int = Field(default=8, ge=1)
    deadline_s: float = Field(
        default=0.02, gt=0, description="A batch leaves at the latest this long after its first frame."
    )
    queue_frames: int = Field(
        default=20_000, ge=1, description="Bound of the frame queue; what does not fit is counted."
    )
    display_period_s: float = Field(
        default=0.05, gt=0, description="Period of mosaics on pvAccess and in the live plot."
    )
    tiled_period_s: float = Field(default=1.0, ge=0.5, description="Period of mosaics into Tiled while a scan runs.")
    residual_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Part of the time that physics residuals may take; 1 checks every frame, 0 none.",
    )
    solve_offsets: bool = Field(
        default=False,
        description="Turn each patch by the constant phase that makes it agree with the image under it.",
    )
    share_index: int = Field(default=0, ge=0, description="Which share of the frames this edge reads, from 0.")
    share_count: int = Field(
        default=1, ge=1, description="Edges that share one stream: each reads the ids of its index modulo this."
    )
    backfill: bool = Field(default=True, description="Read back from the file what the stream missed.")
    catch_up_runs: int = Field(
        default=20, ge=0, description="Completed runs without a mosaic that are replayed at start."
    )

    @property
    def share(self) -> tuple[int, int]:
        """``(k, n)``: this edge reads the frames whose unique id is k modulo n.

        Raises
        ------
        InputError
            k is not below n.
        """
        if self.share_index >= self.share_count:
            raise InputError(
                f"edge.share_index = {self.share_index}", f"it is below edge.share_count = {self.share_count}"
            )
        return self.share_index, self.share_count


class LabelSettings(_Section):
    """What the labels of a scan must pass before they teach (docs: labels)."""

    max_ratio: float = Field(
        default=1.5, ge=1.0, description="Largest error of the frames left out, in units of that of the frames used."
    )
    min_explained: float = Field(
        default=0.65, ge=0.0, le=1.0, description="Smallest part of their variation that the reconstruction explains."
    )
    min_agreement: float = Field(
        default=0.7, ge=0.0, le=1.0, description="Smallest correlation of the objects of two half-scans."
    )
    pixel_gain: float = Field(
        default=0.05,
        ge=0.0,
        description="Part by which another pixel lowers the error of the frames left out that rejects the stated one, "
        "if it is significant.",
    )
    pixel_tolerance: float = Field(
        default=0.035,
        gt=0.0,
        description="Relative distance of the pixel that fits the frames left out best from the stated one that "
        "rejects it, if another one is significantly better.",
    )
    pixel_frames: int = Field(
        default=200, ge=1, description="Frames used from which on that distance counts; with fewer, only the part does."
    )
    pixel_significance: float = Field(default=3.5, gt=0.0, description="Standard errors that are significant.")
    min_held_out: float = Field(default=0.05, gt=0.0, le=0.5, description="Part of the frames that must be left out.")
    half_passes: int = Field(default=10, ge=1, description="Passes of each half-scan.")


class ReconstructSettings(_Section):
    """Iterative reconstruction of finished runs."""

    engine: Literal["epie", "rpie", "cg", "ptychi"] = "epie"
    iterations: int = Field(default=60, ge=1)
    batch_size: int = Field(default=32, ge=1)
    probe_modes: int = Field(default=1, ge=1)
    seed: int = 0
    labels: LabelSettings = LabelSettings()


class TrainSettings(_Section):
    """Training of the network."""

    architecture: str = "ptychonn2"
    recipe: Literal["default", "published"] = "default"
    frames_per_scan: int = Field(default=10_000, ge=1, description="Budget: frame-updates spent for each new scan.")
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=7e-4, gt=0)
    rehearsal_frames: int = Field(
        default=0, ge=0, description="Frames of old runs that are trained on beside the new ones; 0: all of them."
    )
    buffer_frames: int = Field(
        default=0,
        ge=0,
        description="Read the corpus from disk while it is trained on, by `train` and by the worker, and hold this "
        "many frames of it in memory; 0 holds all of them.",
    )
    augment: Literal["auto", "on", "off"] = Field(default="auto", description="Turn and mirror frames and labels.")
    thin_to: float = Field(default=1.0, gt=0, le=1, description="Least share of its photons that a frame keeps.")
    seed: int = 0
    num_threads: int = Field(
        default=1,
        ge=1,
        description="CPU threads; more only pays on idle cores: waiting threads spin, ten times slower.",
    )


class WorkerSettings(_Section):
    """The HPC side."""

    executor: Literal["processes", "inline", "dask", "parsl", "globus"] = Field(
        default="processes", description="Where stages are computed (docs: clusters)."
    )
    max_workers: int = Field(default=2, ge=1, description="Processes of this machine, with executor 'processes'.")
    executor_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the executor: address, configuration file, endpoint (docs: clusters).",
    )
    max_in_flight: int = Field(
        default=2, ge=1, description="Runs worked on at once: one is labelled while another is trained on."
    )
    retries: int = Field(default=3, ge=0, description="How often a stage that fails is repeated.")
    max_crashes: int = Field(
        default=10,
        ge=0,
        description="A run during one stage of which the worker died more often than this is given up.",
    )
    catch_up_period_s: float = Field(default=30.0, gt=0)
    min_frames: int = Field(default=50, ge=1, description="Runs with fewer frames are skipped.")
    prefix: str = Field(default="PTY:worker1:", description="Prefix of the process variables that the worker serves.")
    serve_pvs: bool = Field(default=True, description="Serve status and decisions on pvAccess.")
    update: Literal["every_run", "on_mismatch"] = Field(
        default="every_run",
        description="Learn from every run, or only while the model does not fit new ones (docs: learning).",
    )
    mismatch_tolerance: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="Relative loss of score on a new run from which on one retrains."
    )
    probe_interval_s: float = Field(
        default=3600.0, ge=0.0, description="How often a run is looked at while the model fits."
    )
    look_fraction: float = Field(
        default=0.4,
        gt=0.0,
        le=1.0,
        description="Part of a run, about its middle, that is reconstructed first while the model fits; the rest only "
        "where it does not fit that. 1: whole runs.",
    )
    settle_gain: float | None = Field(
        default=0.02,
        gt=0.0,
        description="A retraining that gains this much score is followed by another; null: only mismatches retrain.",
    )
    patience: int = Field(
        default=3,
        ge=1,
        description="Retrainings in a row without gain after which runs that do not fit are left alone.",
    )
    gate_tolerance: float = Field(
        default=0.0, ge=0.0, description="How much worse than the serving model a candidate may score on new data."
    )
    forget_tolerance: float = Field(
        default=0.02, ge=0.0, description="How much worse it may score on older data of the same regime."
    )
    over_constant: float = Field(
        default=0.1, ge=0.0, description="How much better than a constant image a candidate must score."
    )
    probe_similarity: float = Field(
        default=0.9, gt=0.0, le=1.0, description="Correlation of two probes from which on they are one regime."
    )


class Settings(BaseSettings):
    """All settings of one installation."""

    model_config = SettingsConfigDict(
        env_prefix="PTYCHO_BLUESKY_", env_nested_delimiter="__", extra="forbid", validate_assignment=True
    )

    data_dir: Path = Field(
        default=Path("ptycho_data"), description="Raw files, journals, spools, models of this installation."
    )
    epics: EpicsSettings = EpicsSettings()
    tiled: TiledSettings = TiledSettings()
    zmq: ZmqSettings = ZmqSettings()
    geometry: GeometrySettings = GeometrySettings()
    detector: DetectorSettings = DetectorSettings()
    calibration: Path | None = Field(
        default=None,
        description="File of `calibrate`, for what this one does not state about detector and orientation.",
    )
    edge: EdgeSettings = EdgeSettings()
    reconstruct: ReconstructSettings = ReconstructSettings()
    train: TrainSettings = TrainSettings()
    worker: WorkerSettings = WorkerSettings()

    @property
    def raw_dir(self) -> Path:
        """Where detectors write."""
        return self.data_dir / "raw"

    @property
    def journal_dir(self) -> Path:
        """Where sessions journal their documents."""
        return self.data_dir / "journal"

    @property
    def tiled_dir(self) -> Path:
        """Catalogue and storage of the embedded Tiled server."""
        return self.data_dir / "tiled"

    @property
    def edge_dir(self) -> Path:
        """Spool of the edge."""
        return self.data_dir / "edge"

    @property
    def worker_dir(self) -> Path:
        """State and products of the worker."""
        return self.data_dir / "worker"

    @property
    def models_dir(self) -> Path:
        """Local model registry."""
        return self.data_dir / "models"

    @property
    def corpus_dir(self) -> Path:
        """Label sets."""
        return self.data_dir / "corpus"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, which comes in through the constructor; flags are set last."""
        return env_settings, init_settings

    def to_yaml(self, path: Path) -> None:
        """Write every setting, secrets included, to a file readable by its owner alone."""
        content = self.model_dump(mode="json")
        content["tiled"]["api_key"] = self.tiled.api_key.get_secret_value()
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(content, sort_keys=False))


def load_settings(file: Path | str | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Load the settings.

    Parameters
    ----------
    file : path, optional
        YAML file; by default the one named by ``PTYCHO_BLUESKY_CONFIG``, if any.
    flags : mapping, optional
        Dotted keys (``"edge.batch_size"``) and values that win over file and environment; None values are skipped.

    Raises
    ------
    InputError
        The file cannot be read, or a key is unknown or out of range; the message names it.
    """
    file = file or os.environ.get("PTYCHO_BLUESKY_CONFIG")
    content: dict[str, Any] = {}
    if file:
        try:
            content = yaml.safe_load(Path(file).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"configuration file {file}: {error}", "it must be a readable YAML file") from error
    _add_calibration(content)
    try:
        settings = Settings(**content)
        for key, value in (flags or {}).items():
            if value is None:
                continue
            *sections, name = key.split(".")
            target: Any = settings
            for section in sections:
                target = getattr(target, section)
            setattr(target, name, value)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise InputError(f"configuration: {where}", "", "correct the key in the file, environment or flag") from error
    return settings


def _add_calibration(content: dict[str, Any]) -> None:
    """Take from the calibration's file what a configuration does not state itself."""
    path = os.environ.get("PTYCHO_BLUESKY_CALIBRATION") or content.get("calibration")
    if not path:
        return
    measured = _read_calibration(path)
    for section in ("detector", "geometry"):
        content[section] = {**(measured.get(section) or {}), **(content.get(section) or {})}


def _read_calibration(path: Path | str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"calibration {path}: {error}", "it must be a readable YAML file", "calibrate anew") from error
    if not isinstance(content, dict):
        raise InputError(f"calibration {path}", "it holds the sections detector and geometry", "calibrate anew")
    return content


def load_calibration(path: Path | str) -> tuple[DetectorSettings, str]:
    """Detector settings and orientation of a file that ``calibrate`` wrote.

    Raises
    ------
    InputError
        The file cannot be read, or a key is unknown or out of range.
    """
    content = _read_calibration(path)
    try:
        detector = DetectorSettings(**(content.get("detector") or {}))
    except ValidationError as error:
        raise InputError(f"calibration {path}: {error}", "it holds what calibrate wrote", "calibrate anew") from error
    return detector, str((content.get("geometry") or {}).get("orientation", "identity"))
