"""image.lock: which images there are, and what pins them."""

from __future__ import annotations

import json

import msgspec
import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import UsageError
from launcher.images.lock import ImageLock, read_lock, write_lock
from tests.beds.image_bed import LOCKED


def test_the_lock_remembers_images_and_pins_by_digest_before_id(lock_file):
    pushed = msgspec.structs.replace(LOCKED, digest="r/zl@sha256:bb", variant="cuda")
    write_lock(ImageLock().with_image("zl:cpu", LOCKED).with_image("r/zl:cuda", pushed))
    lock = read_lock()
    assert lock.pinned("zl:cpu") == "sha256:aa"
    assert lock.pinned("r/zl:cuda") == "r/zl@sha256:bb"
    assert lock.pinned("other:1") == "other:1"
    assert (lock.newest("cpu"), lock.newest("cuda")) == ("zl:cpu", "r/zl:cuda")
    older_driver = msgspec.structs.replace(LOCKED, variant="cuda12")
    assert lock.with_image("zl:cuda12", older_driver).newest("cuda") == "zl:cuda12"


def test_a_rebuilt_image_becomes_the_newest(lock_file):
    lock = ImageLock().with_image("a", LOCKED).with_image("b", LOCKED).with_image("a", LOCKED)
    assert lock.newest("cpu") == "a"


def test_a_lock_without_images_is_reported(lock_file):
    done = CliRunner().invoke(cli, ["image", "list"], catch_exceptions=False)
    assert (done.stdout, done.stderr) == ("", f"no images in {lock_file}; build one with zlaunch build\n")


def test_images_are_printed_as_json_too(lock_file):
    write_lock(ImageLock().with_image("a", LOCKED).with_image("b", LOCKED))
    done = CliRunner().invoke(cli, ["image", "list", "--json"], catch_exceptions=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["tag"], row["id"]) for row in rows] == [("a", LOCKED.id), ("b", LOCKED.id)]


def test_a_broken_lock_is_an_error_with_its_place(lock_file):
    lock_file.write_text("{")
    with pytest.raises(UsageError, match=r"image\.lock"):
        read_lock()
