"""pytest fixtures: `lab`, `sshd_farm`, `slurm`, `slurm_accounting`, `slurm_other`, `slurm_lab`, `docker`, `chromium`.

All but `sshd_farm` live as long as the test session. If the machine cannot carry the test bed, the tests are skipped
with the reason. With CI=true in the environment that is a failure, because a suite that skips itself proves nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.testbed.bed import HERE, Docker, Farm, Lab, Slurm
from tests.testbed.slots import Slot, acquire

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TOOLS = {
    "lab": ("ip", "unshare", "nsenter", "ssh-keygen", "/usr/sbin/sshd"),
    "farm": ("ssh-keygen", "/usr/sbin/sshd"),
    "slurm": ("sbatch", "slurmctld", "slurmd", "munged", "mariadbd", "slurmdbd"),
    "docker": ("/usr/sbin/dockerd", "docker", "busybox"),
    "browser": ("chromium",),
}


def missing(part: str) -> str | None:
    """Why this machine cannot carry a part of the test bed; None if it can."""
    if part != "browser":  # it runs on any Linux, as any user
        if os.geteuid() != 0:
            return "the test bed needs root"
        if not Path("/etc/debian_version").exists():
            return "the test bed knows only Debian and Ubuntu"
    absent = [tool for tool in TOOLS[part] if shutil.which(tool) is None]
    if not absent:
        return None
    return f"not installed: {', '.join(absent)} (install with: bash {HERE / 'install.sh'})"


def require(part: str) -> None:
    reason = missing(part)
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        subprocess.run(["bash", str(HERE / "install.sh")], check=False, stdin=subprocess.DEVNULL)
        reason = missing(part)
        if reason is None:
            return
        pytest.fail(f"CI=true, and {reason}", pytrace=False)
    pytest.skip(reason)


@contextmanager
def running(part: Lab | Farm | Slurm | Docker) -> Iterator[None]:
    try:
        part.start()
        yield
    finally:
        part.stop()


@pytest.fixture(scope="session")
def testbed_slot() -> Iterator[Slot]:
    slot = acquire()
    yield slot
    slot.release()


@pytest.fixture(scope="session")
def lab(testbed_slot_checked: Callable[[str], Slot]) -> Iterator[Lab]:
    """Four hosts. A test that cuts or kills one restores it (`lab.restore_all()`)."""
    slot = testbed_slot_checked("lab")
    lab = Lab(slot.root / "lab", slot.tag, slot.lab_network)
    with running(lab):
        yield lab


@pytest.fixture(scope="session")
def testbed_slot_checked(request: pytest.FixtureRequest) -> Callable[[str], Slot]:
    """Check that this machine can carry a part, then give the slot. Without root not even a slot is taken."""

    def check(part: str) -> Slot:
        require(part)
        slot: Slot = request.getfixturevalue("testbed_slot")
        return slot

    return check


@pytest.fixture
def sshd_farm(testbed_slot_checked: Callable[[str], Slot]) -> Iterator[Callable[[int], Farm]]:
    """`sshd_farm(n)`: n loopback sshd until the end of the test."""
    farms: list[Farm] = []

    def make(size: int) -> Farm:
        assert not farms, "one farm a test: a second would take the addresses of the first"
        slot = testbed_slot_checked("farm")
        farms.append(Farm(slot.root / "farm", slot.farm_network, size))
        farms[0].start()
        return farms[0]

    yield make
    for farm in farms:
        farm.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless browser of Debian's package."""
    require("browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox of Chromium refuses to run as root.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def slurm(testbed_slot_checked: Callable[[str], Slot]) -> Iterator[Slurm]:
    """Four nodes on this machine, without accounting, so sacct answers nothing."""
    slot = testbed_slot_checked("slurm")
    slurm = Slurm(slot.root / "slurm", slot.ports(0))
    with running(slurm):
        yield slurm


@pytest.fixture(scope="session")
def slurm_accounting(testbed_slot_checked: Callable[[str], Slot]) -> Iterator[Slurm]:
    """Four nodes on this machine, with slurmdbd and MariaDB."""
    slot = testbed_slot_checked("slurm")
    slurm = Slurm(slot.root / "slurm-accounting", slot.ports(1), accounting=True)
    with running(slurm):
        yield slurm


@pytest.fixture(scope="session")
def slurm_other(slurm_accounting: Slurm, testbed_slot_checked: Callable[[str], Slot]) -> Iterator[Slurm]:
    """A second cluster, `other`, which the commands of `slurm_accounting` reach with -M."""
    slot = testbed_slot_checked("slurm")
    slurm = Slurm(slot.root / "slurm-other", slot.ports(1) + 10, size=1, beside=slurm_accounting)
    with running(slurm):
        yield slurm


@pytest.fixture(scope="session")
def slurm_lab(lab: Lab, testbed_slot_checked: Callable[[str], Slot]) -> Iterator[Slurm]:
    """One slurmd inside each host of the lab, without accounting; runs go under `lab.shared`."""
    slot = testbed_slot_checked("slurm")
    slurm = Slurm(lab.shared / "slurm", slot.ports(0) + 75, lab=lab)
    with running(slurm):
        yield slurm
        for host in lab.hosts:  # the slurmd of a host end with the host's processes, not with those of this machine
            lab.run(host, ["sh", "-c", f"kill $(cat {slurm.root}/run/slurmd-{host}.pid)"], check=False)


@pytest.fixture(scope="session")
def docker(testbed_slot_checked: Callable[[str], Slot]) -> Iterator[Docker]:
    """A private dockerd with `docker.base_image`; never the dockerd of the machine."""
    slot = testbed_slot_checked("docker")
    docker = Docker(slot.root / "docker")
    with running(docker):
        yield docker
