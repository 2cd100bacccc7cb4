"""Messages and help in Chinese, and the codes of errors. tests/test_docs.py holds the catalogues complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from launcher import errors
from launcher.machine.language import catalogue, help_page, spoken
from launcher.machine.language.bilingual import in_chinese
from launcher.machine.language.error_codes import AREAS, CODES, of_cause
from launcher.node.agent.causes import CAUSES
from tests.beds.places import ROOT

CHINESE = "[\u4e00-\u9fff]"


def test_a_translation_has_no_field_that_its_text_lacks() -> None:
    for msgid, msgstr in catalogue.of("errors").items():
        fields = {name for _, name, _ in catalogue.pieces(msgid)}
        assert {name for _, name, _ in catalogue.pieces(msgstr)} <= fields | {None}, msgid


def test_every_message_is_found_with_its_values() -> None:
    """Whatever stands in its fields: another template may be as good, but no value may be lost or turned."""
    wrong = []
    for msgid, msgstr in catalogue.of("errors").items():
        names = [name for _, name, _ in catalogue.pieces(msgid) if name]
        values = {name: f"V{number}x" for number, name in enumerate(names)}
        kept = [values[name] for _, name, _ in catalogue.pieces(msgstr) if name]
        found = in_chinese(msgid.format(**values))
        if re.search(CHINESE, msgstr) and (
            not re.search(CHINESE, found) or sorted(re.findall(r"V\d+x", found)) != sorted(kept)
        ):
            wrong.append((msgid, found))
    assert wrong == []


@pytest.mark.parametrize(
    ("environ", "chinese"),
    [
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_TW.UTF-8"}, True),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN"}, True),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, False),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en:zh"}, False),
        ({"LANG": "C", "LANGUAGE": "zh_CN"}, False),
        ({"LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "zh_CN.UTF-8", "ZLAUNCH_LANG": "en"}, False),
        ({"LC_ALL": "C", "ZLAUNCH_LANG": "zh"}, True),
        ({"ZLAUNCH_LANG": "ZH-CN"}, True),
        ({}, False),
    ],
)
def test_the_language_is_that_of_the_locale_or_of_the_variable(environ: dict[str, str], chinese: bool) -> None:
    assert spoken.is_chinese(environ) is chinese


def zlaunch(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "COLUMNS": "80", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_error_is_printed_with_its_code_in_the_language_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("train: {epochs: many}\nlora: {r: 0}\n")
    english = zlaunch("local", "job.yaml", cwd=tmp_path)
    assert english.returncode == 2
    assert english.stderr.startswith("error[ZL-JOB-01]: 2 mistakes in the job:\n")
    chinese = zlaunch("local", "job.yaml", cwd=tmp_path, ZLAUNCH_LANG="zh")
    assert chinese.returncode == 2
    head, *lines = chinese.stderr.splitlines()
    assert head == "错误[ZL-JOB-01]：作业中有 2 处错误："
    assert all(re.search(CHINESE, line) for line in lines)
    assert "job.yaml" in lines[0]


def test_a_command_line_that_is_not_understood_is_answered_in_chinese(tmp_path: Path) -> None:
    for words, said in (
        (["lcal"], "没有命令 'lcal'。是否想写 'local'？"),
        (["status", "--nope"], "没有选项 '--nope'。"),
        (["logs", "last", "--rank", "x"], "'--rank' 的值无效：'x' 不是合法的"),
        (["cancel"], "缺少参数 'RUN'。"),
    ):
        done = zlaunch(*words, cwd=tmp_path, ZLAUNCH_LANG="zh")
        assert done.returncode == 2
        assert f"错误[ZL-OPT-04]：{said}" in done.stderr
        assert "用法：" in done.stderr


def test_what_programs_read_stays_english(tmp_path: Path) -> None:
    for words in (["list", "--json"], ["explain", "--json", "ZL-DATA-02"], ["schema"], ["keys", "lora.r", "--json"]):
        english, chinese = (zlaunch(*words, cwd=tmp_path, ZLAUNCH_LANG=language).stdout for language in ("en", "zh"))
        assert english == chinese


def test_a_terminal_without_unicode_gets_chinese_in_its_own_encoding(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "status", "none"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ZLAUNCH_LANG": "zh", "PYTHONIOENCODING": "gbk"},
        capture_output=True,
        check=False,
    )
    assert done.stderr.decode("gbk").startswith("错误[ZL-RUN-01]：")


@pytest.mark.parametrize("name", [[], ["local"], ["slurm"], ["doctor"], ["doctor", "net"], ["image", "save"]])
def test_a_help_page_is_chinese_and_fits_the_terminal(name: list[str], tmp_path: Path) -> None:
    page = zlaunch(*name, "--help", cwd=tmp_path, ZLAUNCH_LANG="zh").stdout.splitlines()
    assert page[0].startswith("用法：")
    assert max(map(spoken.columns, page)) <= 80
    left = [line for line in page[1:] if re.search(r"[a-z]{3,} [a-z]{2,} [a-z]{2,}", line)]
    assert left == []


@pytest.mark.parametrize("width", [12, 30, 79])
def test_lines_of_chinese_keep_their_characters_and_the_width(width: int) -> None:
    text = "按 Ctrl-C 或关闭终端，会在保存检查点后停止运行；`zlaunch status` 可再次查看。加 --detach 则不需要终端。"
    lines = help_page.wrapped(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(spoken.columns(line) <= width + 2 for line in lines)  # a punctuation mark stays with its word
    assert not any(line.startswith(("，", "。", "；")) for line in lines)


def used_codes() -> set[str]:
    found = set(map(of_cause, (cause.name for cause in CAUSES)))
    for package in ("launcher", "train"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "error_codes.py":
                found |= set(re.findall(r"ZL-[A-Z]+-\d\d", path.read_text(encoding="utf-8")))
    return found


def test_every_code_is_explained_in_both_languages_and_every_explained_code_is_used() -> None:
    assert sorted(used_codes() ^ set(CODES)) == []
    assert {code.split("-")[1] for code in CODES} == set(AREAS)
    for code, (english, chinese) in CODES.items():
        assert all(english), code
        assert all(re.search(CHINESE, text) for text in chinese), code
        assert not any(re.search(CHINESE, text) for text in english), code


@pytest.mark.parametrize(("text", "chinese"), catalogue.of("views").items())
def test_a_text_of_a_view_keeps_its_fields(text: str, chinese: str) -> None:
    fields = sorted(name for _, name, _ in catalogue.pieces(text) if name)
    assert sorted(name for _, name, _ in catalogue.pieces(chinese) if name) == fields


def test_views_of_a_job_are_chinese_and_its_file_is_still_a_job(tmp_path: Path) -> None:
    written = zlaunch("init", cwd=tmp_path, ZLAUNCH_LANG="zh")
    assert written.stdout.startswith("已写出 job.yaml")
    lines = (tmp_path / "job.yaml").read_text(encoding="utf-8").splitlines()
    assert max(map(spoken.columns, lines[1:])) <= 120
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    words = ["local", "--dry-run", "--device", "cpu", "--set", "model.source=random"]
    rendered = zlaunch(*words, cwd=tmp_path, ZLAUNCH_LANG="zh")
    assert rendered.returncode == 0, rendered.stderr
    head, *reasons, counts = rendered.stdout.splitlines()
    assert head.startswith("已写出 ")
    assert counts == "  进程 1 个，节点 1 个；什么都没有启动"
    assert reasons
    assert all(re.search(CHINESE, line) for line in reasons), reasons
    planned = zlaunch("plan", "--model", "qwen3-8b", "--gpu", "4090", cwd=tmp_path, ZLAUNCH_LANG="zh").stdout
    named = [line for line in planned.splitlines() if re.match(r"  \S+ +\d+\.\d\d GiB", line)]
    assert len({spoken.columns(line.partition(" GiB")[0]) for line in named}) == 1, planned


def test_an_error_keeps_its_code_for_python() -> None:
    assert errors.RunNotFound("no run").code == "ZL-RUN-01"
    assert errors.RunNotFound("no record", code="ZL-RUN-02").code == "ZL-RUN-02"
    assert errors.UsageError("x", hint="y", code="ZL-OPT-01").shown == "error[ZL-OPT-01]: x\n  -> y"


@pytest.mark.parametrize("given", ["ZL-DATA-02", "data-02", "[ZL-DATA-02]"])
def test_a_code_is_explained(given: str, tmp_path: Path) -> None:
    english = zlaunch("explain", given, cwd=tmp_path).stdout
    assert english.startswith("ZL-DATA-02: records cannot be trained on\n")
    assert "  -> " in english
    assert zlaunch("explain", given, cwd=tmp_path, ZLAUNCH_LANG="zh").stdout.startswith(
        "ZL-DATA-02: 记录无法用于训练\n"
    )


def test_an_unknown_code_names_the_list_and_no_code_is_the_list(tmp_path: Path) -> None:
    done = zlaunch("explain", "ZL-DATA-99", cwd=tmp_path)
    assert (done.returncode, "zlaunch explain" in done.stderr) == (2, True)
    assert len(zlaunch("explain", cwd=tmp_path).stdout.splitlines()) == len(CODES)


def test_the_page_of_the_program_itself_uses_the_plain_formatter_in_english() -> None:
    assert click.Context.formatter_class is click.HelpFormatter
