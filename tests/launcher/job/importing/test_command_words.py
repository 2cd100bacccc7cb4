"""Training commands in scripts, read without a shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.job.importing import command_words, recognize

SCRIPT = r"""#!/bin/bash
set -x
export NPROC_PER_NODE=4
MODEL="Qwen/Qwen3-8B"   # a comment
RATE=${RATE:-1e-4}
if [ -n "$X" ]; then echo "$(date)"; fi
CUDA_VISIBLE_DEVICES=0,1 NNODES=2 \
llamafactory-cli train \
    --model_name_or_path ${MODEL} --stage sft --do_train \
    --dataset 'a b,c' --learning_rate $RATE --bf16 \
    --output_dir "out/$(date +%F)" \
    --lora_target q_proj v_proj > log.txt 2>&1 &
"""


def test_variables_quotes_comments_and_continued_lines_are_read_as_a_shell_does() -> None:
    (command,) = command_words.training_commands(SCRIPT)
    tree = command.tree({})
    assert tree["model_name_or_path"] == "Qwen/Qwen3-8B"
    assert (tree["learning_rate"], tree["dataset"], tree["do_train"]) == ("1e-4", "a b,c", True)
    assert tree["lora_target"] == ["q_proj", "v_proj"]
    assert command.gpus == 8
    assert [note.word for note in command.lost] == ["out/..."]


@pytest.mark.parametrize(
    ("launcher", "gpus"),
    [
        ("torchrun --nproc_per_node 4 --nnodes=2 src/train.py", 8),
        ("python -m torch.distributed.run --nproc-per-node=8 src/train.py", 8),
        ("accelerate launch --num_processes 6 src/train.py", 6),
        ("deepspeed --num_gpus 3 --num_nodes 2 src/train.py", 6),
        ("CUDA_VISIBLE_DEVICES=0,3 llamafactory-cli train", 2),
        ("env CUDA_VISIBLE_DEVICES=1 llamafactory-cli train", 1),
        ("torchrun --nproc_per_node $(nvidia-smi -L | wc -l) src/train.py", None),
        ("llamafactory-cli train", None),
    ],
)
def test_launchers_say_how_many_gpus(launcher: str, gpus: int | None) -> None:
    (command,) = command_words.training_commands(f"cd x && {launcher} --stage sft")
    assert command.gpus == gpus
    assert command.tree({})["stage"] == "sft"


def test_options_of_a_command_override_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model_name_or_path: m\nstage: sft\nlearning_rate: 1e-4\n")
    draft = recognize.read("llamafactory-cli train a.yaml learning_rate=2e-4 --seed 7", 1, here=tmp_path)
    assert draft.value("train.learning_rate") == 2e-4
    assert draft.value("train.seed") == 7


@pytest.mark.parametrize("source", ["nowhere.yaml", "echo hello", "llamafactory-cli train none.yaml", "a b", "'"])
def test_what_is_no_training_command_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        recognize.read(source, None, here=tmp_path)


@pytest.mark.parametrize("damage", ["'", '"', "$(", "${", "`", "\\", "${A:-", "$", "(((", "<<<"])
def test_a_damaged_script_is_no_crash(damage: str) -> None:
    for place in range(0, len(SCRIPT), 7):
        command_words.training_commands(SCRIPT[:place] + damage + SCRIPT[place:])
