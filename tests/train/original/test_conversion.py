"""Conversion of original checkpoints: tensors, logits, tokens, shards, and everything that must be refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.beds.places import ROOT

torch = pytest.importorskip("torch")
sentencepiece = pytest.importorskip("sentencepiece")

from tests.beds import original  # noqa: E402  # needs torch
from train import convert as train_convert  # noqa: E402
from train import families  # noqa: E402
from train.original import conversion  # noqa: E402
from train.original.alibi import AlibiLlamaForCausalLM, register  # noqa: E402
from train.original.conversion import ConversionError, converted  # noqa: E402

pytestmark = pytest.mark.train

MODELS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "chatglm2": (original.chatglm_config, {}),
    "chatglm3": (original.chatglm_config, {"_name_or_path": "THUDM/chatglm3-6b"}),
    "baichuan-7b": (original.baichuan_config, {}),
    "baichuan2-7b": (original.baichuan_config, {"second": True}),
    "baichuan-13b": (original.baichuan_config, {"alibi": True}),
    "baichuan2-13b": (original.baichuan_config, {"alibi": True, "second": True}),
}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="session")
def vocabulary() -> bytes:
    return original.sentencepiece_model(control_symbols=[f"<reserved_{n}>" for n in range(200)])


def make(root: Path, name: str, vocabulary: bytes, **how: Any) -> tuple[Path, dict[str, Any], original.Tensors]:
    configure, changes = MODELS[name]
    config = configure(960, **changes, **how.pop("config", {}))
    build = original.chatglm_tensors if "chatglm" in name else original.baichuan_tensors
    tensors = build(config, dtype=how.pop("dtype", torch.float32))
    return original.write(root, config, tensors, vocabulary, **how), config, tensors


@pytest.fixture(scope="session", params=MODELS)
def pair(request: Any, tmp_path_factory: Any, vocabulary: bytes) -> tuple[str, Path, dict[str, Any], original.Tensors]:
    """(name, converted directory, original config, original tensors); odd ones come as safetensors."""
    place = tmp_path_factory.mktemp(request.param)
    layout = "bin" if list(MODELS).index(request.param) % 2 == 0 else "safetensors"
    source, config, tensors = make(place / "source", request.param, vocabulary, layout=layout)
    return request.param, conversion.convert(source, place / "converted", quiet), config, tensors


def load(path: Path, **kwargs: Any) -> Any:
    from transformers import AutoModelForCausalLM

    register()
    return AutoModelForCausalLM.from_pretrained(path, **kwargs).eval()


def forward(name: str) -> Callable[..., Any]:
    return original.chatglm_forward if "chatglm" in name else original.baichuan_forward


def ids(rows: int = 2, length: int = 24) -> Any:
    return torch.randint(3, 900, (rows, length), generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- weights and logits


def test_logits_equal_a_forward_written_from_the_published_architecture(pair: Any) -> None:
    name, path, config, tensors = pair
    with torch.no_grad():
        ours, theirs = load(path)(ids()).logits, forward(name)(tensors, config, ids())
    assert theirs.abs().max() > 0.3  # the comparison says something
    assert (ours - theirs).abs().max() <= 1e-5


def test_the_difference_of_logits_is_only_rounding(pair: Any) -> None:
    """In float64 it shrinks with the rounding (the norms stay in float32 on both sides)."""
    name, path, config, tensors = pair
    exact = {key: value.double() for key, value in tensors.items()}
    with torch.no_grad():
        difference = load(path).double()(ids()).logits - forward(name)(exact, config, ids())
    folded = "z_loss_weight" in config  # the head's rows are normalised once and stored in the checkpoint's float32
    assert difference.abs().max() <= (1e-6 if folded else 1e-12)


def test_every_weight_is_the_original_one_to_the_bit(pair: Any) -> None:
    name, path, config, tensors = pair
    state = load(path).state_dict()
    for layer in range(2):
        attention = f"model.layers.{layer}.self_attn"
        joined = torch.cat([state[f"{attention}.{p}_proj.weight"] for p in "qkv"])
        packed = (
            f"transformer.encoder.layers.{layer}.self_attention.query_key_value.weight"
            if "chatglm" in name
            else f"{attention}.W_pack.weight"
        )
        assert torch.equal(joined, tensors[packed])
    kept = [name for name in tensors if name in state and name != "lm_head.weight"]
    assert all(torch.equal(state[name], tensors[name]) for name in kept)
    head = tensors.get("lm_head.weight", tensors.get("transformer.output_layer.weight"))
    if "z_loss_weight" in config:
        assert torch.allclose(state["lm_head.weight"].norm(dim=1), torch.ones(960))
        head = head / head.norm(dim=1, keepdim=True)
    assert torch.allclose(state["lm_head.weight"], head, atol=1e-7)


def test_a_saved_model_loads_again_and_answers_the_same(pair: Any, tmp_path: Path) -> None:
    _, path, _, _ = pair
    first = load(path)
    first.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(first(ids()).logits, load(tmp_path / "again")(ids()).logits)
    assert families.family_of(json.loads((tmp_path / "again" / "config.json").read_text())) == families.family_of(
        json.loads((path / "config.json").read_text())
    )


def test_lora_gradients_reach_every_target_of_the_family(pair: Any) -> None:
    from peft import LoraConfig, get_peft_model

    _, path, _, _ = pair
    family = families.family_of(json.loads((path / "config.json").read_text()))
    model = get_peft_model(load(path), LoraConfig(r=2, target_modules=list(family.lora_targets), task_type="CAUSAL_LM"))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    model(ids(), labels=ids()).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    assert {name.split(".lora_B")[0].rsplit(".", 1)[1] for name in gradients} == set(family.lora_targets)
    assert all(g is not None and g.norm() > 0 for g in gradients.values())


def test_generation_with_a_cache_is_the_argmax_of_the_whole_forward(pair: Any) -> None:
    name, path, config, tensors = pair
    model = load(path)
    model.generation_config.eos_token_id = None
    prompt = ids(1, 9)
    made = model.generate(prompt, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(prompt))
    with torch.no_grad():
        expected = forward(name)(tensors, config, made[:, :-1]).argmax(-1)
    assert torch.equal(made[:, 9:], expected[:, 8:])


@pytest.mark.parametrize("name", ["baichuan-13b", "baichuan2-13b"])
def test_alibi_models_ignore_left_padding(name: str, vocabulary: bytes, tmp_path: Path) -> None:
    source, config, tensors = make(tmp_path / "s", name, vocabulary)
    model = load(conversion.convert(source, tmp_path / "d", quiet))
    rows, mask = ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[0, :7] = 0
    mask[2, :3] = 0
    with torch.no_grad():
        ours = model(rows.where(mask.bool(), 0), attention_mask=mask).logits
        theirs = original.baichuan_forward(tensors, config, rows, mask)
        alone = original.baichuan_forward(tensors, config, rows[:1, 7:])
    assert (ours - theirs)[mask.bool()].abs().max() <= 1e-5
    assert (ours[:1, 7:] - alone).abs().max() <= 1e-5


def test_an_alibi_checkpoint_is_never_read_as_a_plain_llama(vocabulary: bytes, tmp_path: Path) -> None:
    """A process without this project refuses it, or takes the class that travels with the weights."""
    source, config, tensors = make(tmp_path / "s", "baichuan-13b", vocabulary)
    path = conversion.convert(source, tmp_path / "d", quiet)
    with torch.no_grad():
        torch.save(original.baichuan_forward(tensors, config, ids()), tmp_path / "expected.pt")
    program = """
import sys, torch
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except (ValueError, KeyError):
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    ids = torch.randint(3, 900, (2, 24), generator=torch.Generator().manual_seed(1))
    print(float((model(ids).logits - torch.load(sys.argv[2])).abs().max()))
"""
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "expected.pt")]
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) <= 1e-5


def test_half_precision_checkpoints_keep_their_type(vocabulary: bytes, tmp_path: Path) -> None:
    how = {"config": {"torch_dtype": "bfloat16"}, "dtype": torch.bfloat16}
    source, _, tensors = make(tmp_path / "s", "baichuan2-7b", vocabulary, **how)
    model = load(conversion.convert(source, tmp_path / "d", quiet))
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.norm.weight, tensors["model.norm.weight"])


@pytest.mark.parametrize(
    ("name", "program", "theta"),
    [("chatglm3", "", 80000.0), ("chatglm2", "base = base * self.rope_ratio", 80000.0), ("chatglm2", "", None)],
)
def test_models_for_long_texts_keep_their_stretched_positions(
    name: str, program: str, theta: float | None, vocabulary: bytes, tmp_path: Path
) -> None:
    extra = {"modeling_chatglm.py": program} if program else {}
    source, config, tensors = make(tmp_path / "s", name, vocabulary, config={"rope_ratio": 8}, extra=extra)
    model = load(conversion.convert(source, tmp_path / "d", quiet))
    rope = model.config.rope_parameters
    if theta is None:
        assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 8.0, 10000.0)
        assert torch.allclose(model.model.rotary_emb.inv_freq[0], torch.tensor(1 / 8))
        return
    with torch.no_grad():
        expected = original.chatglm_forward(tensors, config, ids(), theta)
        assert (model(ids()).logits - expected).abs().max() <= 1e-5


def test_baichuans_own_program_decides_whether_the_head_is_normalised(vocabulary: bytes, tmp_path: Path) -> None:
    extra = {"modeling_baichuan.py": "class NormHead(nn.Module): ..."}
    source, _, _ = make(tmp_path / "s", "baichuan-7b", vocabulary, extra=extra)
    head = load(conversion.convert(source, tmp_path / "d", quiet)).lm_head.weight
    assert torch.allclose(head.norm(dim=1), torch.ones(960))


# ---------------------------------------------------------------- tokens


def test_tokens_are_sentencepieces_own(pair: Any, vocabulary: bytes) -> None:
    from transformers import AutoTokenizer

    _, path, _, _ = pair
    tokenizer = AutoTokenizer.from_pretrained(path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    strings = original.varied_strings(1000)
    encoded = tokenizer(strings, add_special_tokens=False)["input_ids"]
    assert [s for s, row in zip(strings, encoded, strict=True) if row != reference.encode(s)] == []
    lost = [s for s in strings if tokenizer.decode(reference.encode(s)) != reference.decode(reference.encode(s))]
    assert lost == []


def test_special_tokens_and_ends_are_the_originals(pair: Any, vocabulary: bytes) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    name, path, _, _ = pair
    tokenizer, size = AutoTokenizer.from_pretrained(path), 900
    hello = sentencepiece.SentencePieceProcessor(model_proto=vocabulary).encode("你好")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (2, 0, "left")
    prefix = [size + 1, size + 3] if "chatglm" in name else []  # [MASK] [gMASK] [sMASK] sop eop follow the vocabulary
    assert tokenizer("你好")["input_ids"] == prefix + hello
    ends = GenerationConfig.from_pretrained(path).eos_token_id
    assert ends == ([2, size + 6, size + 8] if name == "chatglm3" else 2)


def test_chats_become_the_originals_token_sequences(pair: Any, vocabulary: bytes) -> None:
    from transformers import AutoTokenizer

    name, path, _, _ = pair
    tokenizer = AutoTokenizer.from_pretrained(path)
    piece = sentencepiece.SentencePieceProcessor(model_proto=vocabulary).encode
    texts = ["你好", "hello world", "再见 sop"]
    roles = ["user", "assistant", "user"]
    chat = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    made = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    if name == "chatglm2":
        rounds = "[Round 1]\n\n问：你好\n\n答：hello world\n\n[Round 2]\n\n问：再见 sop\n\n答："
        expected = [901, 903, *piece(rounds)]
    elif name == "chatglm3":
        tokens = {"user": 906, "assistant": 907}
        expected = [901, 903]
        for role, text in zip(roles, texts, strict=True):
            expected += [tokens[role], *piece("\n"), *piece(text)]
        expected += [907]  # the model writes the line break itself
    else:
        expected = []
        for role, text in zip(roles, texts, strict=True):
            expected += [195 if role == "user" else 196, *piece(text)]
        expected += [196]
    assert made == expected


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"byte_fallback": False},
    ],
    ids=str,
)
def test_other_settings_of_sentencepiece_are_followed_too(options: dict[str, Any], tmp_path: Path) -> None:
    from train.original import sentencepiece_bpe

    data = original.sentencepiece_model(**options)
    (tmp_path / "tokenizer.model").write_bytes(data)
    tokenizer = sentencepiece_bpe.tokenizer(sentencepiece_bpe.read(tmp_path / "tokenizer.model"))
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    strings = original.varied_strings(600)
    assert [s for s in strings if tokenizer.encode(s).ids != reference.encode(s)] == []


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2 + 1], lambda d: b"tiktoken 1\n" * 9, lambda d: b""])
def test_a_damaged_tokenizer_file_is_refused_by_name(damage: Any, vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "baichuan-7b", vocabulary)
    (source / "tokenizer.model").write_bytes(damage(vocabulary))
    refused(source, tmp_path / "d", "tokenizer.model")


# ---------------------------------------------------------------- sources


def refused(source: Path, target: Path, *words: str) -> None:
    with pytest.raises(ConversionError) as caught:
        conversion.convert(source, target, quiet)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    left = [path.name for path in target.parent.iterdir() if path not in (source, target) and path.suffix != ".lock"]
    assert not target.exists()
    assert left == []


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
@pytest.mark.parametrize("shards", [1, 4])
def test_bin_and_safetensors_whole_and_sharded_give_the_same_weights(
    layout: str, shards: int, vocabulary: bytes, tmp_path: Path
) -> None:
    source, config, tensors = make(tmp_path / "s", "chatglm2", vocabulary, layout=layout, shards=shards)
    model = load(conversion.convert(source, tmp_path / "d", quiet))
    with torch.no_grad():
        assert (model(ids()).logits - original.chatglm_forward(tensors, config, ids())).abs().max() <= 1e-5


def test_shards_are_found_without_their_index(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "baichuan-7b", vocabulary, shards=3)
    (source / "pytorch_model.bin.index.json").unlink()
    conversion.convert(source, tmp_path / "whole" / "d", quiet)
    (source / "pytorch_model-00003-of-00003.bin").unlink()
    (tmp_path / "torn").mkdir()
    refused(source, tmp_path / "torn" / "d", "pytorch_model-00003-of-00003.bin", "missing")


def test_files_of_torch_before_zip_are_read(vocabulary: bytes, tmp_path: Path) -> None:
    source, config, tensors = make(tmp_path / "s", "baichuan-7b", vocabulary, shards=1)
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    model = load(conversion.convert(source, tmp_path / "d", quiet))
    with torch.no_grad():
        assert (model(ids()).logits - original.baichuan_forward(tensors, config, ids())).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.999])
def test_a_cut_shard_is_refused_by_name(layout: str, part: float, vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "baichuan-7b", vocabulary, layout=layout)
    (shard,) = source.glob(f"*00002-of-00003.{layout}")
    os.truncate(shard, int(shard.stat().st_size * part))
    refused(source, tmp_path / "d", shard.name)


def test_a_missing_shard_is_refused_by_name(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "chatglm3", vocabulary)
    (source / "pytorch_model-00001-of-00003.bin").unlink()
    refused(source, tmp_path / "d", "pytorch_model-00001-of-00003.bin", "missing")


def test_a_git_lfs_pointer_is_named_as_what_it_is(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "chatglm3", vocabulary)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (source / "pytorch_model-00002-of-00003.bin").write_text(pointer)
    refused(source, tmp_path / "d", "pytorch_model-00002-of-00003.bin", "Git LFS")


def test_a_tensor_that_no_file_holds_is_refused(vocabulary: bytes, tmp_path: Path) -> None:
    config = original.baichuan_config(960)
    tensors = original.baichuan_tensors(config)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    source = original.write(tmp_path / "s", config, tensors, vocabulary)
    refused(source, tmp_path / "d", "model.layers.1.mlp.up_proj.weight", "incomplete")


def test_a_tensor_that_the_index_names_and_the_shard_lacks_is_refused(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "baichuan-7b", vocabulary)
    shard = source / "pytorch_model-00001-of-00003.bin"
    content = torch.load(shard, weights_only=True)
    lost = sorted(content)[0]
    del content[lost]
    torch.save(content, shard)
    refused(source, tmp_path / "d", shard.name, lost)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1}, ["more layers"]),
        ({"intermediate_size": 64}, ["mlp", "shape"]),
        ({"quantization_config": {"bits": 4}}, ["quantized"]),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel"]),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    changes: dict[str, Any], words: list[str], vocabulary: bytes, tmp_path: Path
) -> None:
    source, config, _ = make(tmp_path / "s", "baichuan-7b", vocabulary)
    (source / "config.json").write_text(json.dumps(config | changes))
    refused(source, tmp_path / "d", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"multi_query_attention": None}, ["first ChatGLM-6B"]),
        ({"padded_vocab_size": 151552}, ["GLM-4", "-hf"]),
        ({"quantization_bit": 4}, ["quantized"]),
        ({"pre_seq_len": 128}, ["pre_seq_len"]),
        ({"num_layers": None}, ["num_layers"]),
    ],
    ids=str,
)
def test_relatives_of_chatglm2_are_refused_with_their_name(
    changes: dict[str, Any], words: list[str], vocabulary: bytes, tmp_path: Path
) -> None:
    source, config, _ = make(tmp_path / "s", "chatglm2", vocabulary)
    changed = {key: value for key, value in (config | changes).items() if value is not None}
    (source / "config.json").write_text(json.dumps(changed))
    refused(source, tmp_path / "d", *words)


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch " + os.environ["MALICE"],))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_pickle_is_refused_and_never_runs(
    form: str, vocabulary: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALICE", str(tmp_path / "ran"))
    source, _, _ = make(tmp_path / "s", "chatglm2", vocabulary)
    shard = source / "pytorch_model-00002-of-00003.bin"
    if form == "torch":
        torch.save({"transformer.output_layer.weight": Malice()}, shard)
    else:
        shard.write_bytes(pickle.dumps(Malice()))
    refused(source, tmp_path / "d", shard.name)
    assert not (tmp_path / "ran").exists()


def test_an_index_that_points_outside_is_refused(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "baichuan-7b", vocabulary)
    index = source / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace("pytorch_model-00001", "../../pytorch_model-00001"))
    refused(source, tmp_path / "d", "index", "outside")


def test_an_existing_directory_is_never_overwritten(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "baichuan-7b", vocabulary)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("keep")
    with pytest.raises(ConversionError, match="exists already"):
        conversion.convert(source, tmp_path / "d", quiet)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["mine.txt"]


def test_nothing_appears_when_the_disk_fills_up(
    vocabulary: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = make(tmp_path / "s", "baichuan-7b", vocabulary)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "write_config", full)  # the last step
    with pytest.raises(OSError, match="No space"):
        conversion.convert(source, tmp_path / "d", quiet)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["s"]


def test_names_with_spaces_quotes_and_chinese_are_only_names(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "a b'c\"$(touch x)\n模型", "baichuan-7b", vocabulary)
    target = conversion.convert(source, tmp_path / "目标 $(x)", quiet)
    assert (target / "config.json").is_file()


# ---------------------------------------------------------------- cache, command, memory


def test_a_checkpoint_is_converted_once_and_again_when_it_changes(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, tensors = make(tmp_path / "s", "baichuan-7b", vocabulary, shards=1)
    messages: list[str] = []
    first = converted(source, messages.append, tmp_path / "cache")
    assert "converting it once" in messages[0]
    stamp = (first / "config.json").stat().st_mtime_ns
    messages.clear()
    assert converted(source, messages.append, tmp_path / "cache") == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    assert len(messages) == 1
    assert "using its conversion" in messages[0]
    torch.save(tensors, source / "pytorch_model.bin")
    os.utime(source / "pytorch_model.bin", ns=(1, 1))
    assert converted(source, quiet, tmp_path / "cache") != first


def test_what_transformers_reads_is_left_where_it_is(pair: Any, tmp_path: Path) -> None:
    _, path, _, _ = pair
    assert converted(path, quiet, tmp_path) == path
    assert converted("Qwen/Qwen3-8B", quiet, tmp_path) == Path("Qwen/Qwen3-8B")
    assert list(tmp_path.iterdir()) == []


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)} | options.pop("env", {})
    command = [sys.executable, *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, **options)


def test_the_command_tells_a_users_mistake_and_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_convert.main([str(tmp_path / "nothing"), str(tmp_path / "e")]) == 2
    assert "nothing: no such directory" in capsys.readouterr().err
    assert train_convert.main([]) == 2


def test_the_command_converts(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "chatglm3", vocabulary)
    done = run("-m", "train.convert", str(source), str(tmp_path / "d"))
    assert done.returncode == 0, done.stderr
    assert "ChatGLM3-6B" in done.stdout
    assert (tmp_path / "d" / "config.json").is_file()


def test_memory_peaks_at_about_one_shard(vocabulary: bytes, tmp_path: Path) -> None:
    """Eight shards of 24 MB: the process must not grow by more than two of them."""
    config = original.baichuan_config(960, hidden_size=768, num_attention_heads=6, intermediate_size=2048)
    config["num_hidden_layers"] = 7
    tensors = original.baichuan_tensors(config)
    source = original.write(tmp_path / "s", config, dict(sorted(tensors.items())), vocabulary, shards=8)
    sizes = [path.stat().st_size for path in source.glob("*.bin")]
    assert sum(sizes) > 4 * max(sizes)
    program = """
import resource, sys
from train.original import conversion as convert
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
convert.convert(sys.argv[1], sys.argv[2], lambda _: None)
print(peak() - before)
"""
    done = run("-c", program, str(source), str(tmp_path / "d"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2 * max(sizes) + 40e6  # and the tokenizer


def test_ranks_that_start_together_convert_once(vocabulary: bytes, tmp_path: Path) -> None:
    source, _, _ = make(tmp_path / "s", "baichuan2-13b", vocabulary)
    program = "import sys; from train.original.conversion import converted; converted(sys.argv[1])"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ZLAUNCH_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, str(source)]
    ranks = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert sum("converting it once" in text for text in outputs) == 1
    assert sum("using its conversion" in text for text in outputs) == 1
    assert isinstance(load(next((tmp_path / "cache" / "converted").glob("s-*"))), AlibiLlamaForCausalLM)
