"""What is said of a word that is no key: what it means here, or what was meant, and never another meaning."""

from __future__ import annotations

import pytest

from launcher.job.explain import is_section, known_keys
from launcher.job.reference import peer_words, unknown_words
from launcher.job.reference.key_table import ROWS


def hint(key: str) -> str:
    place, _, name = key.rpartition(".")
    known = known_keys()
    siblings = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == place]
    return unknown_words.hint(name, place, siblings, known)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("train.per_device_train_batch_size", "train.micro_batch_size"),
        ("per_device_train_batch_size", "train.micro_batch_size"),
        ("num_train_epochs", "train.epochs"),
        ("train.num_epochs", "train.epochs"),
        ("lora_rank", "lora.r"),
        ("lora.lora_r", "lora.r"),
        ("lora.rank", "lora.r"),
        ("warmup_steps", "train.warmup_steps"),
        ("max_samples", "data.train"),
        ("cutoff_len", "data.max_length"),
        ("max_seq_length", "data.max_length"),
        ("sequence_len", "data.max_length"),
        ("micro_batch_size", "train.micro_batch_size"),
        ("train.gradient_accumulation_steps", "train.global_batch_size"),
        ("lr_scheduler_type", "train.scheduler"),
        ("train.lr", "train.learning_rate"),
        ("save_steps", "train.checkpoint_every"),
        ("save_total_limit", "train.keep_checkpoints"),
        ("logging_steps", "train.log_every"),
        ("eval_steps", "eval.every"),
        ("model_name_or_path", "model.path"),
        ("base_model", "model.path"),
        ("load_in_4bit", "model.quantization"),
        ("quantization_bit", "model.quantization"),
        ("bf16", "model.dtype"),
        ("template", "data.chat_template"),
        ("lora_target", "lora.target_modules"),
        ("use_rslora", "lora.rslora"),
        ("loraplus_lr_ratio", "lora.plus_ratio"),
        ("deepspeed", "train.zero_stage"),
        ("gradient_clipping", "train.max_grad_norm"),
        ("slurm.nnodes", "slurm.nodes"),
        ("slurm.gres", "slurm.gpus_per_node"),
        ("slurm.num_gpus", "slurm.gpus_per_node"),
        ("slurm.gpus", "slurm.gpus_per_node"),
        ("ssh.nproc_per_node", "ssh.slots"),
        ("ssh.gpus", "ssh.slots"),
        ("local.nproc_per_node", "local.gpus"),
        ("ssh.nnodes", "ssh.hosts"),
        ("partition", "slurm.partition"),
        ("val_size", "data.eval"),
        ("report-to", "train.report_to"),
    ],
)
def test_a_word_of_other_programs_means_a_key(word: str, key: str) -> None:
    assert f"`{key}` here" in hint(word)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("train.epoch", "train.epochs"),
        ("train.learning_rte", "train.learning_rate"),
        ("train.learningrate", "train.learning_rate"),
        ("train.batch_size_global", "train.global_batch_size"),
        ("train.checkpont_every", "train.checkpoint_every"),
        ("lora.alpah", "lora.alpha"),
        ("lora.target_module", "lora.target_modules"),
        ("data.max_lenght", "data.max_length"),
        ("slurm.node", "slurm.nodes"),
        ("local.gpu", "local.gpus"),
        ("data.epochs", "train.epochs"),
        ("verify_adaptor", "verify_adapter"),
        ("max_restart", "max_restarts"),
    ],
)
def test_a_slip_of_the_pen_is_seen(word: str, key: str) -> None:
    assert hint(word) == f"did you mean `{key}`?"


def test_a_misspelled_word_of_other_programs_is_named_with_its_key() -> None:
    assert hint("cutof_len") == "did you mean `cutoff_len`? It is `data.max_length` here"


@pytest.mark.parametrize(
    "word",
    ["train.min_steps", "train.steps_min", "train.eval_steps_max", "lora.beta", "train.decay", "slurm.mode", "lora.s",
     "data.min_length", "data.on_success", "eval.min_records", "train.zero_shot", "train.adam_gamma3", "stop_line"],
)  # fmt: skip
def test_no_other_meaning_is_offered(word: str) -> None:
    assert hint(word).startswith(("known here: ", "`zlaunch keys"))


def test_a_word_without_an_equivalent_says_why() -> None:
    assert hint("flash_attn") == "`flash_attn` is not a key here: the engine (train.engine) chooses the attention"
    assert hint("plot_loss") == "`plot_loss` is not a key here: `zlaunch report RUN` draws the curves"


def test_the_tables_of_words_are_consistent() -> None:
    keys = [key for key, kind in known_keys().items() if not is_section(kind)]
    of_rows = set(peer_words.names()) - set(peer_words.OTHERS)
    assert set(peer_words.DIFFERENCES) <= of_rows, "a difference belongs to a name in a row"
    assert not set(peer_words.OTHERS) & of_rows, "a word stands in a row or in OTHERS"
    assert {key for key, _ in peer_words.OTHERS.values()} <= {"", *keys}
    last = {key.rpartition(".")[2] for key in keys} - {"adapter"}  # axolotl's names the method
    assert not set(peer_words.OTHERS) & last, "a word that is a key now leaves OTHERS"
    assert len(peer_words.names()) > 250
    assert all(name == peer_words.plain(name) for name in (*peer_words.DIFFERENCES, *peer_words.OTHERS))
    assert set(ROWS) == set(keys)
