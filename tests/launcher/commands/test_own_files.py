"""A user's directory with train.py, json.py, torch/ ... in it: zlaunch runs none of them, and a program all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OURS = ("train", "launcher", "node", "zlaunch")
LIBRARIES = ("json", "types", "random", "typing", "dataclasses", "click", "msgspec", "yaml", "rich", "numpy", "torch",
             "transformers", "tokenizers", "contextlib", "pickle", "marshal", "getopt", "socket", "signal")  # fmt: skip
TRAP = "open({trace!r}, 'a').write(__name__ + '\\n'); raise SystemExit('a file of the user runs: ' + __file__)\n"
RECORDS = '{"instruction": "1+1?", "output": "2"}\n' * 16


class Project:
    """A working directory in which every module name that zlaunch imports is a trap."""

    def __init__(self, home: Path, path: str) -> None:
        self.home, self.trace = home, home.parent / "trace"
        # Whoever names the directory in PYTHONPATH wants Python to take libraries from it; our own modules still win.
        names = OURS if str(home) in path else (*OURS, *LIBRARIES)
        for name in names:
            (home / f"{name}.py").write_text(TRAP.format(trace=str(self.trace)))
        for package in {"train", "torch", "data"} & {*names, "data"}:
            (home / package).mkdir()
            (home / package / "__init__.py").write_text(TRAP.format(trace=str(self.trace)))
        (home / "mine.jsonl").write_text(RECORDS)
        # As the script that pip installs; a `launcher/` on PYTHONPATH before ours would be Python's own choice.
        self.script = home.parent / "zlaunch"
        self.script.write_text("import sys\nfrom launcher.cli import main\nsys.exit(main())\n")
        self.environ = {**os.environ, "PYTHONPATH": path, "ZLAUNCH_RUNS": str(home.parent / "runs"),
                        "OMP_NUM_THREADS": "1"}  # fmt: skip

    def __call__(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, str(self.script), *words], cwd=self.home, env=self.environ, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert not self.trace.exists(), self.trace.read_text()
        return done.stdout


@pytest.fixture(params=[f"{ROOT}", f"{ROOT}::.", f"{ROOT}:{{home}}"])
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Project:
    home = tmp_path / "their project"
    home.mkdir()
    return Project(home, request.param.format(home=home))


def test_commands_before_a_run_import_nothing_of_the_working_directory(project: Project) -> None:
    rows = project("slurm", "--device", "cpu", "--smoke", "--train-data", "mine.jsonl", "--dry-run", "--json")
    assert json.loads(rows.splitlines()[-1])["world_size"] == 1
    project("list", "--json")
    project("plan", "--model", "llama3-8b", "--gpu", "h100")
    model = project.home / "llama"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 1000}))  # fmt: skip
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    project("plan", "--model", "llama", "--set", "data.train=mine.jsonl", "--gpu", "h100")
    project("init")
    project("status", "nothing", code=2)


def test_the_module_itself_may_be_started_in_a_directory_with_their_own_files(tmp_path: Path) -> None:
    home = tmp_path / "their project"
    home.mkdir()
    project = Project(home, str(ROOT))
    for name in ("launcher", "contextlib", "types", "typing", "dataclasses"):
        (home / f"{name}.py").unlink()  # Python itself imports them, before any line of ours
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "plan", "--model", "llama3-8b", "--gpu", "h100"],
        cwd=home, env=project.environ, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, project.trace.exists()) == (0, False), done.stderr


def test_a_program_of_the_users_own_sees_what_python_shows_it_by_itself(tmp_path: Path) -> None:
    home = tmp_path / "theirs"
    (home / "src" / "train").mkdir(parents=True)
    (home / "src" / "train" / "__init__.py").write_text("WHOSE = 'theirs'\n")
    (home / "train.py").write_text("import sys, os\nprint('as', __name__, sys.path[0], os.environ.get('PYTHONPATH'))\n")
    (home / "other.py").write_text("import train\nprint(train.__file__)\n")
    script = tmp_path / "zlaunch"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom launcher.cli import main\nsys.exit(main())\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"ZLAUNCH_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}

    def output(*program: str, **more: str) -> str:
        words = [sys.executable, str(script), "local", "--device", "cpu", "--json", "--", *program]
        done = subprocess.run(words, cwd=home, env={**environ, **more}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        run = Path(json.loads(done.stdout.splitlines()[-1])["directory"])
        return (run / "logs/node-0/rank-0.log").read_text()

    assert output("train.py") == f"as __main__ {home} None\n"
    assert output("other.py").splitlines()[-1] == str(home / "train.py")
    assert output(sys.executable, "-m", "train") == f"as __main__ {home} None\n"
    assert output(sys.executable, "-c", "import train") == "as train  None\n"
    ask = "import sys; sys.path.pop(0); import train; print(train.WHOSE)"
    assert output(sys.executable, "-c", ask, PYTHONPATH=str(home / "src")) == "theirs\n"


@pytest.mark.train
@pytest.mark.parametrize("project", [f"{ROOT}::."], indirect=True)
def test_a_training_and_all_that_follows_it_run_none_of_their_files(project: Project) -> None:
    pytest.importorskip("torch")
    given = ("--smoke", "--train-data", "mine.jsonl", "--set", "eval.after=false")
    rows = project("local", "--device", "cpu", *given, "--json")
    run = json.loads(rows.splitlines()[-1])["run"]
    project("data", "check", "--device", "cpu", *given)
    project("eval", run, "--device", "cpu", "--data", "mine.jsonl", "--max-records", "2")
    project("generate", run, "1+1?", "--device", "cpu", "--max-new-tokens", "2")
    project("export", run, "--to", "adapter", "--out", "exported")
    assert (project.home / "exported" / "adapter_config.json").exists()
    assert sorted(path.name for path in project.home.iterdir() if path.suffix not in (".py", "")) == ["mine.jsonl"]
