"""CI, .ci/run, the hooks and the issue forms are true of the project: each calls what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github/workflows/ci.yml"
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def make_targets(text: str) -> set[str]:
    """Targets of all lines `make TARGET ...` of a script."""
    calls = re.findall(r"^make ([a-z -]+?) *$", text, re.M)
    return {target for call in calls for target in call.split()}


def commands_of_ci() -> str:
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    return "\n".join(step.get("run", "").partition("#")[0] for job in jobs for step in job["steps"])


def test_ci_runs_every_target_of_ci_run_and_all_of_them_exist():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    local = make_targets("\n".join(line.partition("#")[0] for line in script.splitlines()))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {"lint", "types", "test"} <= local <= make_targets(commands_of_ci()) | {"env"}
    assert make_targets(commands_of_ci()) | local <= known


def test_hooks_use_the_tools_of_the_environment_and_need_no_network():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert {repo["repo"] for repo in repos} == {"local"}
    assert {hook["id"] for hook in hooks} >= {"ruff-check", "ruff-format", "mypy", "imports"}
    assert [hook["id"] for hook in hooks if not hook["entry"].startswith(".venv/bin/python -m ")] == []
    named = [word for hook in hooks for word in hook["entry"].split() if word.startswith("tests/")]
    assert [path for path in named if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_asks_at_least_one_required_question(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content["name"]
    assert content["description"]
    questions = [item for item in content["body"] if item["type"] != "markdown"]
    assert len({item["id"] for item in questions}) == len(questions)
    assert all(item["attributes"]["label"] for item in questions)
    assert any(item.get("validations", {}).get("required") for item in questions)


def test_there_are_forms_for_bugs_features_and_questions():
    assert {form.stem for form in FORMS} == {"bug", "feature", "question"}
