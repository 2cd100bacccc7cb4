"""The container image: how it is built, which one a run uses (image.lock), how it travels to hosts without a registry.

Argument lists and the lock's content are pure functions; the few that run an engine say so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher import __version__, assets, hubcache, process
from launcher.container import PROGRAMS, EngineName, SettledJob, engines_for
from launcher.errors import TargetError, UsageError
from launcher.spec import ContainerSpec, JobSpec

Variant = Literal["cuda", "cpu"]

BASE_IMAGES: dict[str, str | None] = {
    "cuda": None,  # the Dockerfile's own default
    "cpu": "docker.io/library/python:3.12-slim-bookworm"
    "@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254",
}
"""Variant -> base image by digest."""

PROBLEMS: tuple[tuple[str, str, str], ...] = (
    ("permission denied", "this user may not use {program}", "add the user to the group `docker`, or use podman"),
    ("Cannot connect", "{program} is not running", "start it, or set DOCKER_HOST to the one that is"),
    ("no such file or directory", "{program} is not running", "start it, or set DOCKER_HOST to the one that is"),
    ("No space left", "no space left for {program}'s images", "free space: {program} system df; {program} image prune"),
    ("o such image", "no image {image} here", "build it (zlaunch build), load it (zlaunch image load) or pull it"),
    ("image not known", "no image {image} here", "build it (zlaunch build), load it (zlaunch image load) or pull it"),
)
"""(text in the engine's answer, what it means, what to do next); the first that fits."""

MAKE_EQUAL = "name the image by its digest, or copy one everywhere (zlaunch image save, zlaunch image load)"
"""What to do about hosts whose images differ."""


# ------------------------------------------------------------------------------------------------------------ build


@dataclass(frozen=True)
class Build:
    """What `zlaunch build` was asked for."""

    variant: Variant
    tag: str
    base_image: str | None = None
    engine: str = "docker"
    offline: bool = False
    """All packages lie in the context: the build gets no network."""
    network: str | None = None


def default_tag(variant: str) -> str:
    return f"zlaunch:{__version__}-{variant}"


def build_argv(build: Build, context: Path, *, revision: str, lock: str) -> tuple[str, ...]:
    """The engine's build command for a staged context; `lock` is `lock_hash(...)`."""
    base_image = build.base_image or BASE_IMAGES[build.variant]
    arguments = {
        "VARIANT": build.variant,
        "VERSION": __version__,
        "REVISION": revision,
        "LOCK_SHA256": lock,
        **({"OFFLINE": "1"} if build.offline else {}),
        **({"BASE_IMAGE": base_image} if base_image else {}),
    }
    network = "none" if build.offline else build.network
    return (
        build.engine,
        "build",
        f"--file={context / 'docker' / 'Dockerfile'}",
        f"--tag={build.tag}",
        *([f"--network={network}"] if network else []),
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        str(context),
    )


@contextlib.contextmanager
def build_context(wheels: Path | None = None) -> Iterator[Path]:
    """A temporary directory with what the Dockerfile copies, the same from a checkout and from an installed wheel.

    `wheels`, a directory that docker/fetch_wheels.sh filled, becomes docker/requirements/wheels in it.
    """
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", "wheels")
    package = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory(prefix="zlaunch-build-") as name:
        context = Path(name)
        inner = shutil.ignore_patterns("__pycache__", "*.pyc", "templates", "docker", "slurm")
        shutil.copytree(package, context / "launcher", ignore=inner)
        shutil.copytree(assets.train_package(), context / "train", ignore=skip)
        for kind in ("templates", "docker", "slurm"):
            shutil.copytree(assets.path(kind), context / kind, ignore=skip)
        if wheels is not None:
            shutil.copytree(wheels, context / "docker/requirements/wheels", copy_function=_link_or_copy)
        yield context


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def lock_hash(variant: str) -> str:
    """sha256 over everything that decides which packages the image holds."""
    requirements = assets.path("docker") / "requirements"
    content = b"".join((requirements / name).read_bytes() for name in ("build.txt", f"{variant}.txt", "train.in"))
    return hashlib.sha256(content).hexdigest()


def source_revision() -> str:
    """The checkout's commit, `-dirty` if it has changes; the version where there is no checkout. Runs git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return f"v{__version__}"
    try:
        commit = process.run(["git", "-C", root, "rev-parse", "HEAD"], timeout=20).stdout.strip()
        changed = process.run(["git", "-C", root, "status", "--porcelain", "-uno"], timeout=20).stdout.strip()
    except process.CommandError:
        return "unknown"
    return commit + ("-dirty" if changed else "")


# ------------------------------------------------------------------------------------------------------- image.lock


class LockedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image of image.lock."""

    id: str
    """sha256 of the image's configuration: the same on every host that loaded the same image."""
    digest: str | None = None
    """`name@sha256:...` in the registry it was pushed to or pulled from."""
    variant: str
    base_image: str
    lock: str
    version: str
    revision: str
    built: str


class ImageLock(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = 1
    images: dict[str, LockedImage] = {}
    """tag -> what it was when it was built; the newest last."""

    def with_image(self, tag: str, image: LockedImage) -> ImageLock:
        others = {name: value for name, value in self.images.items() if name != tag}
        return msgspec.structs.replace(self, images={**others, tag: image})

    def pinned(self, image: str) -> str:
        """The image by content: its registry digest, else its id; an image that is not in the lock as it is."""
        locked = self.images.get(image)
        return (locked.digest or locked.id) if locked else image

    def newest(self, variant: str) -> str | None:
        tags = [tag for tag, image in self.images.items() if image.variant == variant]
        return tags[-1] if tags else None


def lock_path() -> Path:
    return Path(os.environ.get("ZLAUNCH_IMAGE_LOCK", "image.lock"))


def read_lock(path: Path | None = None) -> ImageLock:
    """The lock file's content, empty if there is none. Raises UsageError for one that cannot be read."""
    path = path or lock_path()
    try:
        return msgspec.json.decode(path.read_bytes(), type=ImageLock)
    except FileNotFoundError:
        return ImageLock()
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{path}: {error}", hint="repair it, or delete it and run `zlaunch build` again") from error


def write_lock(lock: ImageLock, path: Path | None = None) -> None:
    path = path or lock_path()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(lock), indent=2) + b"\n")
    temporary.replace(path)


# -------------------------------------------------------------------------------------------------------- transport


@dataclass(frozen=True)
class Archive:
    """A file (or directory) form of an image: how to make it, and whether an engine must load it before use."""

    suffix: str
    save: Mapping[str, tuple[tuple[str, ...], ...]]
    """Engine that has the image -> commands; `{image}`, `{file}`, and `{scratch}`, a file that is deleted after."""
    load: tuple[str, ...] = ()
    """Empty: the engine runs the file itself, once it lies on the shared file system."""


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
"""Format -> commands. A directory for Charliecloud is made by `export_directory`."""


def archive_of(file: Path) -> Archive:
    for archive in ARCHIVES.values():
        if file.suffix == archive.suffix:
            return archive
    endings = ", ".join(archive.suffix for archive in ARCHIVES.values())
    raise UsageError(
        f"{file}: the ending decides the format", hint=f"one of {endings}, or --directory for Charliecloud"
    )


def save_archive(engine: str, image: str, file: Path) -> None:
    """Write an image that the engine has to a file. Runs the engine, and the program that makes the format."""
    commands = archive_of(file).save[engine]
    if not file.absolute().parent.is_dir():
        raise UsageError(f"no directory {file.parent}")
    with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".zlaunch-image-") as folder:
        for argv in commands:
            words = fill(argv, image=image, file=str(file), scratch=str(Path(folder, "image.tar")))
            run(words, words[0], image)


def fill(argv: Iterable[str], **values: str) -> tuple[str, ...]:
    return tuple(word.format(**values) for word in argv)


def export_directory(engine: str, image: str, folder: Path) -> None:
    """Unpack an image into a directory that ch-run runs, its environment in ch/environment. Runs the engine and tar."""
    if folder.exists():
        raise UsageError(f"{folder} exists already")
    environment = ask(engine, image, "{{range .Config.Env}}{{println .}}{{end}}")
    container = run([engine, "create", image], engine, image).strip()
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".zlaunch-image-") as scratch:
            tar, tree = Path(scratch, "image.tar"), Path(scratch, "tree")
            tree.mkdir()
            run([engine, "export", f"--output={tar}", container], engine, image)
            # Device nodes need root, and ch-run brings its own /dev.
            process.run(["tar", "-C", tree, "--exclude=dev/*", "-xf", tar])
            for name in ("dev", "proc", "sys", "tmp", "mnt", "ch"):
                (tree / name).mkdir(exist_ok=True)
            lines = [line for line in environment.splitlines() if "=" in line]
            (tree / "ch/environment").write_text("".join(line + "\n" for line in lines))
            tree.chmod(0o755)
            tree.rename(folder)
    finally:
        run([engine, "rm", container], engine, image)


# ----------------------------------------------------------------------------------------------- asking the engine


def run(argv: Iterable[str | os.PathLike[str]], engine: str, image: str = "") -> str:
    """Run an engine's command; its standard output. Raises TargetError that says what is wrong and what to do."""
    try:
        return process.run(list(argv)).stdout
    except process.CommandError as error:
        raise explain(error, engine, image) from error


def explain(error: process.CommandError, engine: str, image: str = "") -> TargetError:
    """The engine's answer as one of PROBLEMS, else the answer itself."""
    found = diagnosis(error.result.code, error.result.stderr, engine, image)
    if found is None:
        return error
    last = (error.result.last_lines or [""])[-1] if error.result.stderr else ""
    return TargetError(found[0] + (f"\n  {last}" if last else ""), hint=found[1])


def diagnosis(code: int, stderr: str, engine: str, image: str) -> tuple[str, str] | None:
    """(what is wrong, what to do) of an engine's refusal; None for an answer that is in no table."""
    if code == 127 and not stderr:
        others = ", ".join(name for name in PROGRAMS if name != engine)
        return f"{engine} is not installed here", f"install it, or choose another engine: {others}"
    for text, meaning, hint in PROBLEMS:
        if text.lower() in stderr.lower():  # libc and Go do not agree on capitals
            values = {"program": engine, "image": image}
            return meaning.format(**values), hint.format(**values)
    return None


def check_engine(engine: str) -> None:
    """Raises TargetError unless the engine is installed, running and open to this user."""
    run([engine, "version", "--format", "{{.Server.Version}}" if engine == "docker" else "{{.Client.Version}}"], engine)


def ask(engine: str, image: str, template: str) -> str:
    return run([engine, "image", "inspect", "--format", template, image], engine, image).strip()


def image_id(engine: str, image: str) -> str:
    """`sha256:...` of an image that the engine has. Raises TargetError."""
    answer = ask(engine, image, "{{.Id}}")
    return answer if answer.startswith("sha256:") else f"sha256:{answer}"


def repository_digest(engine: str, image: str) -> str | None:
    """`name@sha256:...` under which a registry knows the image; None for one that was only built or loaded."""
    answer = ask(engine, image, "{{range .RepoDigests}}{{println .}}{{end}}").split()
    fitting = [digest for digest in answer if repository(digest) == repository(image)]
    return fitting[0] if fitting else None


def repository(image: str) -> str:
    """The image's name without tag and digest, in full: docker says `zl` where podman says `docker.io/library/zl`, or
    `localhost/zl` of one that it built itself."""
    name = image.partition("@")[0]
    if ":" in name.rpartition("/")[2]:
        name = name.rpartition(":")[0]
    first, slash, _ = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    if first == "localhost" and name.count("/") == 1:
        return f"docker.io/library/{name.partition('/')[2]}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"


def locked_image(build: Build, *, revision: str, lock: str) -> LockedImage:
    """The record of an image that was just built. Asks the engine."""
    return LockedImage(
        id=image_id(build.engine, build.tag),
        digest=repository_digest(build.engine, build.tag),
        variant=build.variant,
        base_image=build.base_image or BASE_IMAGES[build.variant] or _dockerfile_base(),
        lock=f"sha256:{lock}",
        version=__version__,
        revision=revision,
        built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


@dataclass(frozen=True)
class Question:
    """What every host of a run is asked about its image."""

    engine: str
    image: str
    argv: tuple[str, ...]
    """The engine's words up to the image; none for an image that is a file or a directory."""
    environ: Mapping[str, str]


@dataclass(frozen=True)
class HostImage:
    """A host's answer."""

    id: str = ""
    digests: frozenset[str] = frozenset()
    problem: str = ""
    advice: str = ""


def question(spec: JobSpec, device: str) -> Question | None:
    """None: the job runs in no container, or in an image that hosts only fetch when they start it."""
    engine, _ = engine_of(spec, "ssh")
    name = None if engine == "none" else image_of(spec.container, engine, device)
    if engine == "none" or engine == "pyxis" or not name:
        return None
    if engine in ("docker", "podman"):
        template = "{{.Id}}{{range .RepoDigests}} {{.}}{{end}}"
        return Question(engine, name, (engine, "image", "inspect", "--format", template), spec.env)
    return None if "://" in name else Question(engine, name, (), spec.env)


def answer(asked: Question, said: Mapping[str, Any]) -> HostImage:
    """What farend.image returned on one host."""
    if said["code"] == 0:
        words = said["said"].split()
        if asked.argv and words:
            own = words[0] if words[0].startswith("sha256:") else f"sha256:{words[0]}"
            return HostImage(own, frozenset(word.partition("@")[2] for word in words[1:]))
        return HostImage("" if said.get("size") is None else f"{said['size']} bytes")
    if not asked.argv:
        return HostImage(problem=f"no image {asked.image} here", advice="write it with: zlaunch image save TAG FILE")
    found = diagnosis(said["code"], said["said"], asked.engine, asked.image)
    last = (said["said"].strip().splitlines() or [f"status {said['code']}"])[-1]
    problem, advice = found or (f"{asked.engine}: {last}", f"look there: {' '.join(asked.argv)} {asked.image}")
    return HostImage(problem=problem, advice=advice)


def different(answers: Mapping[int, HostImage]) -> dict[int, str]:
    """{host: the image that most hosts have} for every host that has another one under the same name.

    A registry's digest that two hosts share makes their images the same, whatever ids their engines gave them.
    """
    there = {rank: found for rank, found in answers.items() if not found.problem}
    usual = max(there.values(), key=lambda one: sum(_same(one, other) for other in there.values()), default=HostImage())
    return {rank: usual.id for rank, found in there.items() if not _same(found, usual)}


def _same(one: HostImage, other: HostImage) -> bool:
    return one.id == other.id or bool(one.digests & other.digests)


def _dockerfile_base() -> str:
    lines = (assets.path("docker") / "Dockerfile").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("ARG BASE_IMAGE="))


def first_engine(engines: Iterable[EngineName], environ: Mapping[str, str] = os.environ) -> EngineName:
    """The first of these engines that this machine has. Raises TargetError."""
    engines = tuple(engines)
    for engine in engines:
        if shutil.which(PROGRAMS[engine], path=environ.get("PATH")):
            return engine
    programs = " or ".join(PROGRAMS[engine] for engine in engines)
    raise TargetError(
        f"no {' or '.join(engines)} on this machine, which this image needs",
        hint=f"install {programs}, or say --container ENGINE (or none)",
    )


# ------------------------------------------------------------------------------------------------------ for one run


def settled(spec: JobSpec, backend: str, device: str) -> JobSpec:
    """The job with its engine and image decided: runtime `none`, or an engine with an image by digest.

    On this machine the engine is asked whether it runs and has the image; on other hosts that shows when the run
    starts. Raises UsageError and TargetError.
    """
    engine, why = engine_of(spec, backend)
    if engine == "none":
        return msgspec.structs.replace(spec, container=ContainerSpec(runtime="none"))
    image = image_of(spec.container, engine, device)
    if image is None:
        raise UsageError(
            f"container.runtime is {engine}, and container.image names no image",
            hint=f"zlaunch build --variant {device}, or --image NAME",
        )
    if backend == "local" and engine != "pyxis":
        _check_image(engine, image)
    job = SettledJob(**{name: getattr(spec, name) for name in JobSpec.__struct_fields__}, why_engine=why)
    decided = msgspec.structs.replace(job.container, runtime=engine, image=image)
    return hubcache.with_caches(_with_home(msgspec.structs.replace(job, container=decided)), backend)


Runtime = EngineName | Literal["pyxis", "none"]
"""What a run is in: an engine's container, a task of pyxis, or none."""


def engine_of(spec: JobSpec, backend: str) -> tuple[Runtime, str]:
    """(what a run is in, why where the job did not say); known before any host is asked. Raises UsageError, and on this
    machine TargetError."""
    runtime, image = spec.container.runtime, spec.container.image
    if runtime == "auto":
        return _engine_for(image, backend) if image else ("none", "")
    if runtime == "pyxis" and backend != "slurm":
        raise UsageError("pyxis is a plugin of Slurm", hint=f"say --container {' or '.join(PROGRAMS)}")
    return runtime, ""


def in_container(spec: JobSpec, backend: str) -> bool:
    """Whether a run brings its environment in an image."""
    return engine_of(spec, backend)[0] != "none"


def image_of(wanted: ContainerSpec, engine: Runtime, device: str) -> str | None:
    """The image that is named, else the newest that was built for the device, by content where the engine knows it so;
    None: there is neither. Raises UsageError for a lock that cannot be read."""
    lock = read_lock()
    image = wanted.image or lock.newest(device)
    return lock.pinned(image) if image and engine in ("docker", "podman") else image


def _engine_for(image: str, backend: str) -> tuple[EngineName, str]:
    """What `auto` means for an image, and why. Elsewhere nobody has looked which engines there are, so the image's form
    alone decides. Raises UsageError and TargetError."""
    engines, form = engines_for(image)
    if backend != "local":
        return engines[0], f"{image} is {form}; say --container ENGINE for another engine"
    if engines == ("charliecloud",) and Path(image).is_file():
        raise UsageError(
            f"container.image: {image} is a file of no known kind",
            hint="a .sif, a .sqsh or a directory; or --container",
        )
    engine = first_engine(engines)
    return engine, f"{image} is {form}, and {PROGRAMS[engine]} is on this machine"


def _check_image(engine: EngineName, image: str) -> None:
    if engine in ("docker", "podman"):
        image_id(engine, image)
    elif shutil.which(PROGRAMS[engine]) is None:
        raise TargetError(f"{PROGRAMS[engine]} is not installed here", hint="say --container with an engine that is")
    elif "://" not in image and not Path(image).exists():
        raise TargetError(f"no image {image} here", hint="write it with: zlaunch image save TAG FILE")


def _with_home(spec: SettledJob) -> SettledJob:
    """`~` is this user's home here, as in a job file (spec.load): inside, HOME is another place."""
    path = spec.model.path
    if not path.startswith("~"):
        return spec
    model = msgspec.structs.replace(spec.model, path=str(Path(path).expanduser()))
    return msgspec.structs.replace(spec, model=model)
