"""image.lock: each built image by tag, so that a run names its image by content."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from launcher.errors import UsageError


class LockedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image of image.lock."""

    id: str
    """sha256 of the image's configuration, the same on every host that has the same image."""
    digest: str | None = None
    """`name@sha256:...` in the registry that the image was pushed to or pulled from."""
    variant: str
    base_image: str
    lock: str
    version: str
    revision: str
    built: str


class ImageLock(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = 1
    images: dict[str, LockedImage] = {}
    """tag -> its image when it was built; the newest last."""

    def with_image(self, tag: str, image: LockedImage) -> ImageLock:
        others = {name: value for name, value in self.images.items() if name != tag}
        return msgspec.structs.replace(self, images={**others, tag: image})

    def pinned(self, image: str) -> str:
        """The image by registry digest, else by id. An image that the lock does not have stays as it is."""
        locked = self.images.get(image)
        return (locked.digest or locked.id) if locked else image

    def newest(self, device: str) -> str | None:
        """The image that was built last for `cuda` (of any version) or `cpu`."""
        tags = [tag for tag, image in self.images.items() if image.variant.rstrip("0123456789") == device]
        return tags[-1] if tags else None


def lock_path() -> Path:
    return Path(os.environ.get("ZLAUNCH_IMAGE_LOCK", "image.lock"))


def read_lock(path: Path | None = None) -> ImageLock:
    """The lock file; empty if there is none. Raises UsageError for a file that cannot be read."""
    path = path or lock_path()
    try:
        return msgspec.json.decode(path.read_bytes(), type=ImageLock)
    except FileNotFoundError:
        return ImageLock()
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"{path}: {error}", hint="repair it, or delete it and run `zlaunch build` again", code="ZL-IMAGE-02"
        ) from error


def write_lock(lock: ImageLock) -> None:
    path = lock_path()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(lock), indent=2) + b"\n")
    temporary.replace(path)
