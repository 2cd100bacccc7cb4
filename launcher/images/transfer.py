"""An image as a file or a directory, for hosts without a registry."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError
from launcher.images.engine import inspect, run
from launcher.machine import process
from launcher.machine.byte_progress import waiting


@dataclass(frozen=True)
class Archive:
    """A file format of an image: the commands that write it, and the command that loads it."""

    suffix: str
    save: Mapping[str, tuple[tuple[str, ...], ...]]
    """Engine that has the image -> commands with `{image}`, `{file}`, and `{scratch}`, a temporary file."""
    load: tuple[str, ...] = ()
    """Empty: the engine runs the file itself, from a shared file system."""


ARCHIVES: dict[str, Archive] = {
    "tar": Archive(
        ".tar",
        {engine: ((engine, "save", "--output={file}", "{image}"),) for engine in ("docker", "podman")},
        load=("{engine}", "load", "--input={file}"),
    ),
    "sif": Archive(
        ".sif",
        {
            "docker": (("apptainer", "build", "{file}", "docker-daemon:{image}"),),
            # Apptainer does not read podman's storage.
            "podman": (
                ("podman", "save", "--format=docker-archive", "--output={scratch}", "{image}"),
                ("apptainer", "build", "{file}", "docker-archive:{scratch}"),
            ),
        },
    ),
    "sqsh": Archive(
        ".sqsh",
        {
            "docker": (("enroot", "import", "--output={file}", "dockerd://{image}"),),
            "podman": (("enroot", "import", "--output={file}", "podman://{image}"),),
        },
    ),
}
"""Format -> commands. `export_directory` writes a directory for Charliecloud."""


def archive_of(file: Path) -> Archive:
    for archive in ARCHIVES.values():
        if file.suffix == archive.suffix:
            return archive
    endings = ", ".join(archive.suffix for archive in ARCHIVES.values())
    raise UsageError(
        f"{file}: the ending of the name decides the format",
        hint=f"use {endings}, or --directory for Charliecloud",
        code="ZL-IMAGE-05",
    )


def save_archive(engine: str, image: str, file: Path) -> None:
    """Write an image of an engine to a file. Runs the engine and the program that makes the format."""
    commands = archive_of(file).save[engine]
    if not file.absolute().parent.is_dir():
        raise UsageError(f"no directory {file.parent}", code="ZL-FILE-02")
    with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".zlaunch-image-") as folder:
        for argv in commands:
            scratch = Path(folder, "image.tar")
            words = fill(argv, image=image, file=str(file), scratch=str(scratch))
            with waiting(f"writing {file.name}", scratch if "{scratch}" in " ".join(argv[:-1]) else file):
                run(words, words[0], image)


def load_archive(engine: str, file: Path) -> str:
    """Load a file into an engine and return the engine's answer. Raises UsageError for a file that needs no loading."""
    commands = archive_of(file).load
    if not commands:
        raise UsageError(f"{file} needs no loading", hint=f"name it as the image: --image {file}", code="ZL-IMAGE-05")
    with waiting(f"loading {file.name} into {engine}"):
        return run(fill(commands, engine=engine, file=str(file)), engine, str(file)).strip()


def fill(argv: Iterable[str], **values: str) -> tuple[str, ...]:
    return tuple(word.format(**values) for word in argv)


def export_directory(engine: str, image: str, folder: Path) -> None:
    """Unpack an image into a directory for ch-run, with its environment in ch/environment. Runs the engine and tar."""
    if folder.exists():
        raise UsageError(f"{folder} exists already", code="ZL-FILE-01")
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"no directory {folder.parent}", code="ZL-FILE-02")
    environment = inspect(engine, image, "{{range .Config.Env}}{{println .}}{{end}}")
    container = run([engine, "create", image], engine, image).strip()
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".zlaunch-image-") as scratch:
            tar, tree = Path(scratch, "image.tar"), Path(scratch, "tree")
            tree.mkdir()
            with waiting(f"exporting {image}", tar):
                run([engine, "export", f"--output={tar}", container], engine, image)
            with waiting(f"unpacking {image}"):  # device nodes need root, and ch-run brings its own /dev
                process.run(["tar", "-C", tree, "--exclude=dev/*", "-xf", tar])
            for name in ("dev", "proc", "sys", "tmp", "mnt", "ch"):
                (tree / name).mkdir(exist_ok=True)
            lines = [line for line in environment.splitlines() if "=" in line]
            (tree / "ch/environment").write_text("".join(line + "\n" for line in lines))
            tree.chmod(0o755)
            tree.rename(folder)
    finally:
        run([engine, "rm", container], engine, image)
