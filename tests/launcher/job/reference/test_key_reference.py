"""Every key of a job has a text in both languages, an example and the names of peers; references are made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.job import yamlfile
from launcher.job.explain import is_section, known_keys
from launcher.job.load import checked, put, read_job, wants_text
from launcher.job.reference.commented import SHORT, commented
from launcher.job.reference.key_reference import Key, keys, value_text
from launcher.job.reference.key_table import ROWS, SECTIONS
from launcher.job.spec import JobSpec


def test_every_key_has_a_text_in_both_languages_and_an_example() -> None:
    assert list(keys()) == [key for key, kind in known_keys().items() if not is_section(kind)]
    assert set(ROWS) == set(keys())
    assert {key.section for key in keys().values()} == set(SECTIONS)
    lacking = [key.name for key in keys().values() if not (key.text and key.row.chinese and key.row.text)]
    assert lacking == []
    assert [key.name for key in keys().values() if not key.text.endswith((".", ")")) or "  " in key.text] == []


@pytest.mark.parametrize("key", keys().values(), ids=lambda key: key.name)
def test_the_example_of_a_key_is_accepted_and_is_not_its_default(key: Key) -> None:
    value = yamlfile.loads(key.row.example, where=key.name, key=key.name, is_text=wants_text)
    tree: dict[str, object] = {"notify": {"url": "$HOOK"}, "data": {"eval": "7%"}}
    put(tree, key.name, value, where=key.name)
    spec: object = checked(tree)
    for name in key.name.split("."):
        spec = getattr(spec, name)
    assert spec != key.default


def test_a_name_of_peers_is_written_once_per_key_and_no_option_without_dashes() -> None:
    for key in keys().values():
        names = [peer.name for peer in key.peers]
        assert len(set(names)) == len(names), key.name
        assert all(peer.programs for peer in key.peers), key.name
        slurm = [peer for peer in key.peers if "Slurm" in peer.programs]
        assert all(peer.name.startswith("--") for peer in slurm), key.name


def test_a_new_job_file_is_short_and_holds_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(commented({}), encoding="utf-8")
    assert read_job(file).spec == JobSpec()
    assert len(file.read_text().splitlines()) < 70
    assert set(SHORT) <= set(keys())


def test_a_full_job_file_names_every_key_with_its_default(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    text = commented({"train.epochs": 3.0}, full=True)
    file.write_text(text, encoding="utf-8")
    assert read_job(file).spec == JobSpec().with_values({"train.epochs": 3.0})
    opened = [line.replace("#", "", 1) if line.strip()[:1] == "#" and line.strip()[1] != " " else line
              for line in text.splitlines()]  # fmt: skip
    file.write_text("\n".join(opened), encoding="utf-8")
    assert read_job(file).spec == JobSpec().with_values({"train.epochs": 3.0})
    tree = yamlfile.load(file)
    named = [key for key in keys() if key != "program"]
    assert [key for key in named if key.split(".")[-1] not in (tree[key.split(".")[0]] if "." in key else tree)] == []
    assert max(map(len, text.splitlines())) <= 80


def test_a_comment_of_the_caller_replaces_that_of_the_schema() -> None:
    text = commented({"train.scheduler": "linear"}, notes={"train.scheduler": "as lr_scheduler_type"})
    assert "  scheduler: linear             # as lr_scheduler_type\n" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-4, "2e-4"), (1.5e-5, "1.5e-5"), (0.1, "0.1"), (1.0, "1.0"), (0.0, "0.0"), (True, "true"), (None, "null"),
     ("", "''"), ("a: b", "'a: b'"), (("a", "b"), "[a, b]"), ({"a": "问"}, "{a: 问}"), ("1:30", "'1:30'")],
)  # fmt: skip
def test_a_value_is_written_as_a_job_file_has_it(value: object, text: str) -> None:
    assert value_text(value) == text
    back = yamlfile.loads(text, where="here")
    assert (tuple(back) if isinstance(value, tuple) else back) == value
