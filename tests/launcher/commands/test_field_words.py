"""Commands and options of other programs are understood, or answered with the right command line."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from launcher.cli import COMMANDS, cli
from launcher.commands import field_words
from launcher.commands.keys import columns, folded
from launcher.job.reference.key_reference import keys


def answer(*words: str) -> str:
    """The message of a command line that is refused."""
    with pytest.raises(click.UsageError) as caught:
        cli.main(list(words), prog_name="zlaunch", standalone_mode=False)
    return field_words.explained(caught.value).format_message()


def output(*words: str) -> str:
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("local --num_gpus 4", "--num_gpus is --gpus here."),
        ("local --nproc-per-node=4", "is --gpus here."),
        ("local --nproc_per_node 4", "is --gpus here."),
        ("slurm --num_gpus 4", "is --gpus-per-node here"),
        ("ssh --nproc_per_node 4", "is --slots here"),
        ("slurm --nnodes 2", "--nnodes is --nodes here."),
        ("slurm -J x", "-J is --name here."),
        ("slurm --ntasks-per-node 2", "is --procs-per-node here: ranks on CPUs"),
        ("slurm --gres gpu:8", "is --gpus-per-node here: without `gpu:`"),
        ("local --partition gpu", "It is for another place: `slurm.partition` of `zlaunch slurm`."),
        ("local --max_steps 3", "Did you mean '--max-steps'?"),
        ("local --per_device_train_batch_size 3", "is --micro-batch-size here: records per optimizer step"),
        ("local --num_train_epochs 3", "is --epochs here"),
        ("local --lora_rank 3", "is --lora-r here"),
        ("local --cutoff_len 3", "is --max-length here"),
        ("local --cutof_len 3", "--cutoff_len is --max-length here"),
        ("local --warmup_ratio 0.1", "train.warmup_ratio=VALUE"),
        ("local --train.warmup_ratio 0.1", "--set train.warmup_ratio=VALUE"),
        ("local --flash_attn fa2", "There is none: the engine"),
        ("local --master_port 1", "There is none: a free port is found"),
        ("local --output_dir x", "There is none: runs are in $ZLAUNCH_RUNS"),
        ("local --gpu 1", "--gpu is --gpus here: a number"),
        ("local --epoch 1", "Did you mean '--epochs'?"),
        ("list --jsn", "Did you mean '--json'?"),
        ("local job.yaml lora.r=3", "is set by --set KEY=VALUE"),
        ("--num_gpus 4 local", "`local.gpus` of the job here"),
    ],
)
def test_an_option_of_other_programs_is_answered_with_ours(words: str, part: str) -> None:
    assert part in answer(*words.split())


@pytest.mark.parametrize("words", ["local --min-steps 3", "local --zzz 3", "local --top-x 3", "list -q", "logs --q"])
def test_no_option_of_another_meaning_is_offered(words: str) -> None:
    assert answer(*words.split()) == f"No such option {words.split()[1]!r}."


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("train my job.yaml --epochs 3", "zlaunch slurm my job.yaml --epochs 3"),
        ("run", "zlaunch local job.yaml"),
        ("finetune x.yaml", "zlaunch ssh x.yaml"),
        ("torchrun train.py", "zlaunch local --gpus 4 -- train.py ARGS"),
        ("job.yaml --epochs 1", "zlaunch local job.yaml --epochs 1"),
        ("merge", "zlaunch export RUN --to merged"),
        ("webui", "zlaunch ui"),
        ("help", "zlaunch --help"),
        ("dpo", "only supervised"),
        ("lokal", "Did you mean 'local'?"),
        ("qwertz", "zlaunch --help lists them"),
    ],
)
def test_a_command_of_other_programs_is_answered_with_the_right_line(words: str, part: str) -> None:
    assert part in answer(*words.split())


def test_words_for_the_same_command_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = click.Context(cli, info_name="zlaunch")
    for word, ours in field_words.ALIASES.items():
        assert word not in COMMANDS
        assert field_words.command_line(context, [word, "RUN"], list(COMMANDS)) == [*ours, "RUN"]
        assert ours[0] in COMMANDS
    assert field_words.command_line(context, ["tail"], []) == ["logs", "-f", "last"]
    assert field_words.command_line(context, ["stop"], []) == ["cancel"]
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    assert output("ls") == output("ps") == output("list")
    assert "Save a last checkpoint" in output("stop", "--help")


def test_the_answers_name_commands_and_options_that_exist() -> None:
    context = click.Context(cli, info_name="zlaunch")
    for text in field_words.ANSWERS.values():
        for line in text.split("zlaunch ")[1:]:
            name = line.split()[0]
            if not name.startswith("-") and name.islower():
                command = cli.get_command(context, name)
                assert command is not None, line
                options = [word.rstrip(",;") for word in line.split(";")[0].split() if word.startswith("--")]
                assert set(options) <= {name for param in command.params for name in param.opts}, line


# ------------------------------------------------------------------------------------------------ zlaunch keys


def test_the_reference_lists_every_key_within_80_columns() -> None:
    text = output("keys")
    assert [key for key in keys() if f"  {key} " not in text] == []
    assert max(columns(line) for line in text.splitlines()) <= 80
    assert max(columns(line) for line in output("keys", "--lang", "zh").splitlines()) <= 80


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("train.epochs", ["train.epochs"]),
        ("epochs", ["train.epochs"]),
        ("num_train_epochs", ["train.epochs"]),
        ("lora_rank", ["lora.r"]),
        ("--nproc-per-node", ["local.gpus"]),
        (
            "学习率",
            ["lora.plus_ratio", "train.learning_rate", "train.learning_rates", "train.scheduler", "train.warmup_ratio"],
        ),
        ("ZeRO stage", ["train.zero_stage"]),
        ("notify", ["notify.url", "notify.format", "notify.sign", "notify.command", "notify.on"]),
        ("val_size", ["data.eval"]),
    ],
)
def test_a_search_finds_keys_by_name_text_and_peers(pattern: str, found: list[str]) -> None:
    rows = json.loads(output("keys", "--json", "--", *pattern.split()))
    assert set(found) <= {row["key"] for row in rows}
    assert len(rows) <= len(found) + 3


def test_a_key_is_explained_with_all_that_is_known_of_it() -> None:
    text = output("keys", "per_device_train_batch_size")
    for part in ("`train.micro_batch_size` here: records per", "whole number or auto, at least 1; default auto",
                 "example: micro_batch_size: 4", "flag: --micro-batch-size", "(axolotl, Megatron)"):  # fmt: skip
        assert part in text
    assert "整数 或 auto，至少 1; 默认 auto" in output("keys", "微批")
    assert "is not a key here: the engine" in output("keys", "flash_attn")
    with pytest.raises(Exception, match="no key matches 'zzzz'"):
        output("keys", "zzzz")


@pytest.mark.parametrize("width", [12, 30, 80])
def test_text_is_folded_at_blanks_and_chinese_characters(width: int) -> None:
    text = "auto：在 GPU 上训练，没有 GPU 的机器 on the CPU, a-very-long-word-without-any-blank"
    lines = list(folded(text, width, "", "  "))
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(columns(line) <= width or len(line.split()) == 1 for line in lines)
