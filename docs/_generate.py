"""Pages that are drawn from the code when the documentation is built, so that they cannot drift from it."""

from __future__ import annotations

import types
import typing
from pathlib import Path

import typer
from pydantic import BaseModel
from typer.testing import CliRunner

import ptycho_bluesky.config as config
from ptycho_bluesky.cli.main import COMMANDS, build_app

HERE = Path(__file__).parent
PACKAGES = (
    "records",
    "geometry",
    "metrics",
    "config",
    "errors",
    "preprocess",
    "simulation",
    "models",
    "reconstruction",
    "stitching",
    "inference",
    "training",
    "io",
    "streaming",
    "workflow",
    "devices",
    "plans",
    "callbacks",
    "session",
    "bench",
    "demo",
)


def _type_name(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if isinstance(annotation, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(annotation))
    return getattr(annotation, "__name__", str(annotation)).replace("NoneType", "unset")


def _settings_rows(model: type[BaseModel], prefix: str = "") -> list[str]:
    rows: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += _settings_rows(kind, f"{prefix}{name}.")
            continue
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{prefix}{name}` | {_type_name(kind)} | {default} | {field.description or ''} |")
    return rows


def settings_page() -> str:
    """Table of every setting."""
    head = (
        "# Settings\n\nOne YAML file (`--config` or `PTYCHO_BLUESKY_CONFIG`), over it the environment, over both the "
        "flags. "
        "The key `edge.batch_size` is `edge: {batch_size: …}` in the file and `PTYCHO_BLUESKY_EDGE__BATCH_SIZE` in the "
        "environment.\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
    )
    return head + "\n".join(_settings_rows(config.Settings)) + "\n"


def commands_page() -> str:
    """Help of every subcommand."""
    app, runner = build_app(), CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})

    def section(level: str, *words: str) -> str:
        text = runner.invoke(app, [*words, "--help"], prog_name="ptycho-bluesky").output.rstrip()
        return f"{level} {' '.join(words)}\n\n```text\n{text}\n```\n"

    parts = ["# Commands\n\nEvery command ends with a code other than 0 when it fails, and with 2 for a bad input.\n"]
    for name in COMMANDS:
        parts.append(section("##", name))
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        parts += [section("###", name, sub) for sub in sorted(getattr(command, "commands", {}))]
    return "\n".join(parts)


def _modules(package: str) -> list[str]:
    root = HERE.parent / "ptycho_bluesky" / package
    if root.is_dir():
        names = sorted(path.stem for path in root.glob("*.py") if path.stem != "__init__")
        return [f"ptycho_bluesky.{package}.{name}" for name in names]
    return [f"ptycho_bluesky.{package}"] if root.with_suffix(".py").exists() else []


def api_pages(folder: Path) -> None:
    """One page a package with the docstrings of its modules."""
    folder.mkdir(parents=True, exist_ok=True)
    index = ["# Python API", "", "```{toctree}", ":maxdepth: 1", ""]
    for package in PACKAGES:
        modules = _modules(package)
        if not modules:
            continue
        lines = [f"# {package}", ""]
        for module in modules:
            lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "   :members:", "```", ""]
        (folder / f"{package}.md").write_text("\n".join(lines))
        index.append(package)
    (folder / "index.md").write_text("\n".join([*index, "```", ""]))


def generate() -> None:
    """Write all generated pages."""
    api_pages(HERE / "reference" / "api")
    (HERE / "reference" / "commands.md").write_text(commands_page())
    (HERE / "reference" / "settings.md").write_text(settings_page())


if __name__ == "__main__":
    generate()
