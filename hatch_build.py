"""What a build writes into the wheel and the sdist beside the files of the checkout: its revision and its links.

Both come from git, so that they are those of whoever builds. An sdist carries them on to wheels that are built of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

REVISION = "launcher/revision.txt"
"""Read by launcher/machine/installation.py. Git ignores it, and it is left out of a checkout."""


def git(root: str, *arguments: str) -> str:
    """The answer of git of this checkout; empty: no checkout, no git, or another project's around it."""
    try:
        top = _answer(root, "rev-parse", "--show-toplevel")
        return _answer(root, *arguments) if top and Path(top).samefile(root) else ""
    except OSError:
        return ""


def _answer(root: str, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=False)  # noqa: S607
    return result.stdout.strip() if result.returncode == 0 else ""


def revision(root: str) -> str:
    """The commit, with `-dirty` for changed files; without a checkout what the sdist says; empty: unknown."""
    commit = git(root, "rev-parse", "HEAD")
    if commit:
        return commit + ("-dirty" if git(root, "status", "--porcelain", "-uno") else "")
    written = Path(root, REVISION)
    return written.read_text(encoding="utf-8").strip() if written.is_file() else ""


def links(remote: str) -> dict[str, str]:
    """The project's links by the address of its repository; none for a path or a host without a name."""
    found = re.fullmatch(
        r"(?:https?://|ssh://)?(?:[^@/]*@)?([\w-]+(?:\.[\w-]+)+)[:/]/*([\w.-]+(?:/[\w.-]+)+?)/?", remote
    )
    if found is None:
        return {}
    home = f"https://{found[1]}/{found[2].removesuffix('.git')}"
    pages = {"Documentation": "/tree/main/docs", "Changelog": "/blob/main/CHANGELOG.md", "Issues": "/issues"}
    return {"Homepage": home, "Source": home, **{name: home + page for name, page in pages.items()}}


class Revision(BuildHookInterface[Any]):
    """Put the revision into the archive that is built, through a file of its own."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.scratch = tempfile.mkdtemp(prefix="zlaunch-revision-")
        found = revision(self.root)
        if found and version != "editable":
            file = Path(self.scratch, "revision.txt")
            file.write_text(found + "\n", encoding="utf-8")
            build_data["force_include"][str(file)] = REVISION

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


class Links(MetadataHookInterface):
    """The links of the project, for its page in a package index."""

    def update(self, metadata: dict[str, Any]) -> None:
        metadata["urls"] = links(git(self.root, "remote", "get-url", "origin"))


def get_build_hook() -> type[Revision]:
    return Revision


def get_metadata_hook() -> type[Links]:
    return Links
