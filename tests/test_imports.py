"""The house's rules on who may import whom (ARCHITECTURE.md, "Imports")."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "unsloth", "deepspeed", "peft", "datasets", "bitsandbytes", "trl", "accelerate"}
TRAIN_FOR_LAUNCHER = {
    "train",
    "train.config",
    "train.families",
    "train.memory",
    "train.compat",
    "train.rundir.checkpoints",
    "train.sandbox",
}
STDLIB_ONLY = sorted((ROOT / "launcher/node").rglob("*.py"))
PURE_TRAIN = [
    "train/config.py",
    "train/families.py",
    "train/memory.py",
    "train/compat.py",
    "train/rundir/checkpoints.py",
    "train/sandbox.py",
]


def imports(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, at any depth of it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            found |= names if is_package else {node.module}
    return found


def files(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("launcher"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_launcher_imports_nothing_heavy_and_only_the_pure_part_of_train(path):
    names = imports(path)
    assert {name for name in names if name.split(".")[0] in HEAVY} == set()
    from_train = {name for name in names if name.split(".")[0] == "train"}
    assert {name for name in from_train if name not in TRAIN_FOR_LAUNCHER} == set()


@pytest.mark.parametrize("path", files("train"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_training_program_never_imports_the_launcher(path):
    assert {name for name in imports(path) if name.split(".")[0] == "launcher"} == set()


@pytest.mark.parametrize("name", [name for name in PURE_TRAIN if (ROOT / name).exists()])
def test_what_the_launcher_takes_from_train_needs_no_torch(name):
    allowed = sys.stdlib_module_names | {"msgspec", "train", "__future__"}
    assert {module for module in imports(ROOT / name) if module.split(".")[0] not in allowed} == set()


@pytest.mark.parametrize("path", STDLIB_ONLY, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_runs_on_bare_hosts_is_standard_library(path):
    allowed = sys.stdlib_module_names | {"node"}  # there the package is `node`
    found = imports(path)
    assert {module for module in found if module.split(".")[0] not in allowed} == set()


def graph_of(package: Path) -> dict[str, set[str]]:
    """{module of a package: modules of it that it imports}, wherever the import stands: at the top, in a function, or
    for the type checker only. A module named in a text (a table of commands, of backends) is no import."""
    paths = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        around = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = around[: len(around) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                graph[name] |= {full if (full := f"{base}.{alias.name}") in paths else base for alias in node.names}
        graph[name] &= paths.keys()
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, in the order in which they import each other; empty: there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


FLOORS = {
    "launcher": (
        ("errors", "node"),
        ("machine", "job"),
        ("remote", "plan", "rundir"),
        ("render", "images"),
        ("backends", "show"),
        ("lifecycle",),
        ("web",),
        ("commands", "cli"),
    ),
    "train": (
        ("config", "families", "rundir", "trackers"),
        ("errors", "memory", "compat", "sandbox"),
        ("dist", "hub"),
        ("records", "original", "fused"),
        ("templating", "model", "convert"),
        ("data", "quickcheck", "netcheck"),
        ("answers", "datacheck"),
        ("training", "exports", "generate", "chat"),
        ("evaluate", "export", "__main__"),
    ),
}
"""Every room of both packages, a file at the top being a room of its own: a room imports only from
lower floors."""
MOST_ARROWS = {"launcher": 55, "train": 90}
"""Imports between rooms; a new one should be worth more than the one that goes for it."""
MOST_FILES = 16
"""Python files of one folder, beyond which it is two rooms; commands/ has one file per command."""


def room_of(module: str) -> str:
    room = module.split(".")[1] if "." in module else "__init__"
    return "cli" if module == "launcher.__main__" else room


def arrows(package: str) -> set[tuple[str, str]]:
    """(room, room that it imports) of a package."""
    graph = graph_of(ROOT / package)
    found = {(room_of(name), room_of(other)) for name, others in graph.items() for other in others if other != package}
    return {(room, other) for room, other in found if room != other}


@pytest.mark.parametrize("package", FLOORS)
def test_the_table_of_floors_names_every_room(package):
    named = [room for floor in FLOORS[package] for room in floor]
    assert sorted(named) == sorted({room_of(module) for module in graph_of(ROOT / package)} - {"__init__"})


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_from_lower_floors(package):
    floor_of = {room: number for number, floor in enumerate(FLOORS[package]) for room in floor}
    climbing = [f"{room} -> {other}" for room, other in sorted(arrows(package)) if floor_of[other] >= floor_of[room]]
    assert climbing == []


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_have_few_arrows_between_them(package):
    assert len(arrows(package)) <= MOST_ARROWS[package]


def rooms() -> list[Path]:
    return sorted(
        {path.parent for package in FLOORS for path in files(package)} - {ROOT / package for package in FLOORS}
    )


@pytest.mark.parametrize("room", rooms(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_says_what_it_is_for_and_stays_small(room):
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert docstring
    assert len(docstring.splitlines()) >= 3
    assert room.name == "commands" or len(list(room.glob("*.py"))) <= MOST_FILES


@pytest.mark.parametrize("package", FLOORS)
def test_no_two_files_of_a_package_have_one_name(package):
    named = [path.name for path in files(package) if path.parent.name != "commands" and not path.name.startswith("__")]
    assert sorted({name for name in named if named.count(name) > 1}) == []


@pytest.mark.parametrize("package", ["launcher", "train"])
def test_no_modules_import_each_other_in_a_circle(package):
    assert circle_in(graph_of(ROOT / package)) == []


@pytest.mark.parametrize(
    "text",
    [
        "from pack.sub import deep\n",
        "def late():\n    import pack.sub.deep\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .sub.deep import Name\n",
    ],
)
def test_a_circle_is_seen_wherever_its_imports_stand(tmp_path, text):
    (tmp_path / "pack/sub").mkdir(parents=True)
    for name in ("__init__", "sub/__init__", "other"):
        (tmp_path / f"pack/{name}.py").touch()
    (tmp_path / "pack/first.py").write_text(text)
    (tmp_path / "pack/sub/deep.py").write_text("class A:\n    def f(self):\n        from .. import first, other\n")
    assert set(circle_in(graph_of(tmp_path / "pack"))) == {"pack.first", "pack.sub.deep"}


def test_help_loads_no_heavy_module_and_no_command():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom launcher.cli import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'rich', 'paramiko', 'msgspec', 'yaml', 'jinja2') or m.startswith('launcher.commands')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("modules", "unused"),
    [
        ("launcher.commands.status, launcher.show.page.write", ("jinja2", "torch", "paramiko")),
        (
            "launcher.commands.local, launcher.lifecycle.attach",
            ("rich", "torch", "paramiko", "launcher.job.reference.key_table", "launcher.commands.field_words"),
        ),
        ("train.quickcheck", ("jinja2", "torch", "numpy")),
    ],
)
def test_a_short_command_loads_nothing_slow_that_it_does_not_use(modules: str, unused: tuple[str, ...]) -> None:
    code = f"import sys\nimport {modules}\nprint([m for m in {unused} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
