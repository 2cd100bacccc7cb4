"""The hostfile reads as DeepSpeed reads it, and says where it is wrong."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

from launcher.backends.ssh.host_request import requested_hosts
from launcher.errors import HostfileError
from launcher.job.load import convert
from launcher.remote import address, hostfile


@pytest.fixture(scope="module")
def runner():  # type: ignore[no-untyped-def]
    """DeepSpeed's own launcher module; importing it takes torch."""
    return pytest.importorskip("deepspeed.launcher.runner")


TEXTS = [
    "worker-0 slots=16\n",
    "worker-0 slots=16",
    "worker-0 slots=4\nworker-1 slots=2\n",
    "\n\n  worker-0   slots=4   \n\t\n",
    "# comment\nworker-0 slots=4\n   # indented comment\n",
    "worker-0 slots=4 # trailing comment",
    "worker-0 slots=4 max_slots=8",
    "worker-0 slots=4x",
    "worker-0\tslots=4",
    "worker-0 slots=0",
    "worker-0 slots=007",
    "user@host:2222 slots=1",
    "192.168.0.1 slots=2\r\n192.168.0.2 slots=2\r\n",
    "a slots=1\rb slots=2",
    "a slots=1\x0bb slots=2",
    "a slots=1\x0cb slots=2",
    "工作站 slots=2",
    "a slots=٣",
    "\ufeffa slots=2",
    "a\u00a0slots=2",
    "a slots=1\x00",
    "slots=4 slots=4",
    "worker-0 slots=4 worker-1 slots=4",
    "",
    "\n\n",
    "# only comments\n",
    "worker-0",
    "worker-0 4",
    "slots=4",
    " slots=4",
    "worker-0 slots=",
    "worker-0 slots=four",
    "worker-0 slots=-1",
    "worker-0 slots =4",
    "worker-0 slots= 4",
    "worker-0slots=4",
    "worker-0 Slots=4",
    "worker-0 slots=4\nworker-0 slots=4",
    "worker-0 slots=4\nworker-1 slots=x\n",
    "worker-0 worker-1 slots=4",
    "worker-0, slots=4",
    "worker-0 slots=4.5",
    "worker-0 slots=1_0",
    "worker-0#x slots=4",
    "worker-0 #slots=4",
]


def ours(text: str) -> dict[str, int] | None:
    try:
        return hostfile.parse(text)
    except HostfileError:
        return None


def theirs(runner, text: str, tmp_path: Path) -> dict[str, int] | None:  # type: ignore[no-untyped-def]
    file = tmp_path / "hostfile"
    file.write_text(text, encoding="utf-8", newline="")
    try:
        return dict(runner.fetch_hostfile(str(file)))
    except ValueError:
        return None


@pytest.mark.train
def test_every_text_is_accepted_or_rejected_as_by_deepspeed_with_the_same_result(runner, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pieces = [
        "a",
        "b-1",
        "u@c:22",
        " ",
        "\t",
        "\n",
        "slots=",
        "slots",
        "=",
        "4",
        "0",
        "12",
        "#",
        "\r\n",
        "x",
        "-",
        "a slots=1\n",
    ]
    dice = random.Random(7)
    texts = TEXTS + ["".join(dice.choices(pieces, k=dice.randint(1, 14))) for _ in range(1500)]
    results = [(text, ours(text), theirs(runner, text, tmp_path)) for text in texts]
    assert [text for text, mine, other in results if mine != other] == []
    assert [list(mine) for _, mine, _ in results if mine] == [list(other) for _, _, other in results if other]
    accepted = sum(1 for _, mine, _ in results if mine)
    assert 50 < accepted < len(results) - 50  # both sides of the grammar were met


@pytest.mark.train
def test_every_filter_selects_or_is_rejected_as_by_deepspeed(runner) -> None:  # type: ignore[no-untyped-def]
    pool = {"a": 4, "b": 2, "c-1": 1, "d": 0}
    pieces = ["a", "b", "c-1", "d", "e", ":", "@", ",", "0", "1", "2", "3", "-1", " ", "a:0", "@b", ":0,1"]
    dice = random.Random(11)
    filters = [
        "a@b:0,1",
        "b:1@a:3,0,0",
        "a:0@a:1",
        "a:0@a",
        "a@a",
        "b",
        "",
        "d",
        "a:",
        "a:0:1",
        "a@",
        "@",
        "e",
        "a:9",
        "b: 1",
    ]
    filters += ["".join(dice.choices(pieces, k=dice.randint(1, 7))) for _ in range(1500)]
    agreed = 0
    for include, exclude in [(f, "") for f in filters] + [("", f) for f in filters] + [("a", "b")]:
        try:
            other = dict(runner.parse_inclusion_exclusion(pool, include, exclude))
        except ValueError:
            other = None
        try:
            mine = hostfile.select(pool, include, exclude)
        except HostfileError:
            mine = None
        assert mine == other, (include, exclude)
        assert mine is None or list(mine) == list(other)
        agreed += mine is not None
    assert agreed > 100


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a slots=1\nb\n", 2, "no slots=N after the host"),
        ("# x\n\na slots=one\n", 3, "slots= needs a number"),
        ("a slots= 1", 1, "no space is allowed around"),
        ("slots=3", 1, "no host before slots=N"),
        ("a slots=1\nb slots=1\na slots=2", 3, "a is already in line 1"),
        ("a b slots=1", 1, "expected a host"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_reason(tmp_path: Path, text: str, line: int, reason: str) -> None:
    file = tmp_path / "my hosts.txt"
    file.write_text(text)
    with pytest.raises(HostfileError) as caught:
        hostfile.load(file)
    assert str(caught.value).startswith(f"{file}: line {line}: ")
    assert reason in str(caught.value)


def test_an_absent_hostfile_is_an_error_and_never_a_local_run(tmp_path: Path) -> None:
    with pytest.raises(HostfileError, match="no such hostfile"):
        hostfile.load(tmp_path / "hosts.txt")
    with pytest.raises(HostfileError, match="cannot be read"):
        hostfile.load(tmp_path)


def test_a_hostfile_of_other_bytes_is_rejected_as_no_text(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"\xff\xfe\x00a slots=1")
    with pytest.raises(HostfileError, match="not a text file"):
        hostfile.load(tmp_path / "hosts")


def test_hosts_are_names_with_user_and_port() -> None:
    assert hostfile.parse_hosts("a, b,user@c:2222") == ("a", "b", "user@c:2222")
    assert hostfile.parse_hosts(["a,b", "c"]) == ("a", "b", "c")
    assert address.parse_address("user@c:2222") == address.Address("c", "user", 2222)
    assert address.parse_address("me@corp@c") == address.Address("c", "me@corp")
    assert address.parse_address("fe80::1") == address.Address("fe80::1")
    assert address.parse_address("[fe80::1]:22") == address.Address("fe80::1", None, 22)


@pytest.mark.parametrize(
    "bad",
    ["", "a,,b", "a,", "a,a", "a:0", "a:70000", "a:ssh", "@a", "a b", "-oProxyCommand=x", "a;b", "u@", "$(x)", "a:٣"],
)
def test_a_bad_hosts_list_is_rejected(bad: str) -> None:
    with pytest.raises(HostfileError, match="--hosts"):
        hostfile.parse_hosts(bad)


def test_the_parity_tests_run_where_the_training_environment_is() -> None:
    """The two comparisons above may be skipped only for want of DeepSpeed itself."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    assert importlib.util.find_spec("deepspeed.launcher.runner") is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node[01-03,7]", "node01 node02 node03 node7"),
        ("a,node[1-2],b:22", "a node1 node2 b:22"),
        (
            "rack[1-2]n[8-11]-ib",
            "rack1n8-ib rack1n9-ib rack1n10-ib rack1n11-ib rack2n8-ib rack2n9-ib rack2n10-ib rack2n11-ib",
        ),
        ("n[8-010]", "n8 n9 n10"),
        ("n[1,02,003-4]", "n1 n02 n003 n004"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[1-2][3-4]", "n13 n14 n23 n24"),
        ("u@n[1-2]:2222", "u@n1:2222 u@n2:2222"),
        ("[::1]:22,[fe80::1]", "[::1]:22 [fe80::1]"),
    ],
)
def test_ranges_are_expanded_as_scontrol_show_hostnames_does(text: str, expected: str) -> None:
    assert list(hostfile.parse_hosts(text)) == expected.split()
    assert list(hostfile.parse_hosts([text])) == expected.split()


@pytest.mark.parametrize(
    "text", ["n[4-1]", "n[]", "n[a-b]", "n[1", "n[1-2", "n[1-2]]", "n[1-9999999]", "n[1-2],n2", "n[1-]"]
)
def test_ranges_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(HostfileError):
        hostfile.parse_hosts(text)


def test_a_byte_order_mark_is_skipped_and_a_range_in_a_hostfile_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(b"\xef\xbb\xbfworker-0 slots=4\r\nworker-1 slots=2\r\n")
    assert hostfile.load(file) == {"worker-0": 4, "worker-1": 2}
    file.write_text("worker-[0-1] slots=4\n")
    with pytest.raises(HostfileError, match="numbers in the brackets"):
        requested_hosts(convert({"ssh": {"hostfile": str(file)}}, where="test").ssh)
