"""TRL's `trl sft` and its YAML files, and arguments of transformers' Trainer as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.job.importing import peer_data, trainer_arguments
from launcher.job.importing.draft import Context, Draft, Note, Words, is_off
from launcher.job.importing.peer_data import Sources
from launcher.job.importing.trainer_arguments import Defaults

MARKS = ("dataset_name", "use_peft", "lora_target_modules", "dataset_train_split", "assistant_only_loss",
         "completion_only_loss", "packing_strategy")  # fmt: skip
"""Words of TRL beside model_name_or_path."""


def read(tree: Mapping[str, Any], context: Context) -> Draft:
    """Arguments of TRL's SFT script as a draft."""
    draft = Draft("TRL")
    words = Words(tree, draft)
    _model(words)
    _adapter(words)
    _data(words, context)
    if words.carry("data.max_length", "max_length", words.whole) is None:
        words.carry("data.max_length", "max_seq_length", words.whole, 1024)
    words.unused("as max_length", "max_seq_length")
    defaults = Defaults(learning_rate=2e-5, logging_steps=10)
    trainer_arguments.carry(words, context, defaults, held_out="data.eval" in draft.settings)
    if words.flag("packing"):
        trainer_arguments.packed_rows(draft, "packing")
    _loss(words)
    words.unused("speed and memory only", "padding_free", "packing_strategy", "eval_packing", "pad_to_multiple_of",
                 "activation_offloading", "dataset_num_proc", "use_liger", "dataset_batch_size",
                 "num_of_sequences", "chars_per_token", "ignore_bias_buffers")  # fmt: skip
    _router_loss(words)
    words.lost("zlaunch does not have it", "dataset_kwargs", "model_init_kwargs")
    words.finish()
    return draft


def _router_loss(words: Words) -> None:
    """TRL adds it only where the model's config asks for the routers' logits."""
    options = words.tree.get("model_init_kwargs")
    if isinstance(options, Mapping) and options.get("output_router_logits") is True:
        words.carry("train.router_loss", "router_aux_loss_coef", words.number, "auto")
        if set(options) == {"output_router_logits"}:
            words.take("model_init_kwargs")
    words.unused("without model_init_kwargs.output_router_logits no loss of routers is added", "router_aux_loss_coef")


def read_arguments(tree: Mapping[str, Any], context: Context) -> Draft:
    """TrainingArguments alone: how to train, not what."""
    draft = Draft("transformers")
    words = Words(tree, draft)
    words.carry("model.path", "model_name_or_path", words.text)
    words.carry("data.max_length", "max_seq_length", words.whole)
    for word, key in (("train_file", "data.train"), ("validation_file", "data.eval")):
        if path := words.text(word):
            draft.set(key, str(context.find(path) or path), word)
    reason = "they do not say what is trained: set model.path and data.train; the job trains a LoRA adapter"
    draft.differs.append(Note("TrainingArguments", None, reason))
    words.refuse("pre-training on plain text; zlaunch does supervised fine-tuning", "block_size", "mlm")
    trainer_arguments.carry(words, context, Defaults(), held_out="data.eval" in draft.settings)
    words.unused("zlaunch trains where the job says", "do_train", "do_predict")
    words.finish()
    return draft


def _model(words: Words) -> None:
    draft = words.draft
    path = words.carry("model.path", "model_name_or_path", words.text)
    trainer_arguments.quantized_already(draft, "model_name_or_path", path)
    if (revision := words.text("model_revision", "main")) != "main":
        draft.set("model.revision", revision, "model_revision")
    words.carry("model.trust_remote_code", "trust_remote_code", words.flag)
    for word in ("dtype", "torch_dtype"):
        if (dtype := words.text(word)) in ("bfloat16", "float16", "float32"):
            draft.set("model.dtype", dtype, word)
    if words.flag("load_in_4bit"):
        draft.set("model.quantization", "nf4", "load_in_4bit")
    if words.flag("load_in_8bit"):
        draft.set("model.quantization", "int8", "load_in_8bit")
    if words.text("bnb_4bit_quant_type", "nf4") != "nf4":
        draft.lost.append(Note("bnb_4bit_quant_type", words.tree["bnb_4bit_quant_type"], "zlaunch has nf4"))
    words.unused("as zlaunch does it", "use_bnb_nested_quant", "bnb_4bit_quant_storage", "attn_implementation")


def _adapter(words: Words) -> None:
    draft = words.draft
    if not words.flag("use_peft"):
        draft.refused.append(Note("use_peft", False, "full fine-tuning; zlaunch trains LoRA adapters"))
    words.carry("lora.r", "lora_r", words.whole, 16)
    words.carry("lora.alpha", "lora_alpha", words.number, 32)
    words.carry("lora.dropout", "lora_dropout", words.number, 0.05)
    targets = words.names("lora_target_modules")
    if targets == ("all-linear",):
        draft.set("lora.target_modules", "auto", "lora_target_modules: all-linear")
    elif targets:
        draft.set("lora.target_modules", list(targets), "lora_target_modules")
    else:
        draft.set("lora.target_modules", ["q_proj", "v_proj"], "PEFT's default for most models")
        draft.differs.append(
            Note("lora_target_modules", None, "PEFT has a default for each model: most have these two")
        )
    if modules := words.names("lora_modules_to_save"):
        draft.set("lora.modules_to_save", list(modules), "lora_modules_to_save")
    words.carry("lora.rslora", "use_rslora", words.flag)
    words.carry("lora.dora", "use_dora", words.flag)
    if words.text("lora_task_type", "CAUSAL_LM") != "CAUSAL_LM":
        draft.refused.append(Note("lora_task_type", words.tree["lora_task_type"], "zlaunch trains language models"))
    words.lost("LoRA goes on whole linear layers", "lora_target_parameters")


def _data(words: Words, context: Context) -> None:
    draft = words.draft
    sources = Sources(draft, "dataset_name")
    split, held = words.text("dataset_train_split", "train"), words.text("dataset_test_split", "test")
    config = words.text("dataset_config")
    name = words.text("dataset_name")
    if name and (place := context.find(name)) is not None:
        sources.add(str(place))
    elif name:
        sources.add(peer_data.hub(name, config, split))
    listed = words.take("datasets", [])
    for entry in listed if isinstance(listed, list) else []:
        path = str(entry.get("path", ""))
        if entry.get("data_files") or entry.get("data_dir"):
            draft.lost.append(Note("datasets", entry, "name its files in data.train"))
        elif entry.get("fraction") is not None:
            draft.lost.append(Note("datasets", entry, "give the source a weight in data.train"))
        sources.add(str(context.find(path) or peer_data.hub(path, entry.get("name"), entry.get("split"))))
    if share := words.number("test_split_size"):
        sources.hold_out(share, "test_split_size")
    elif name and not is_off(words.tree.get("eval_strategy")) and words.tree["eval_strategy"] != "no":
        draft.set("data.eval", peer_data.hub(name, config, held), "dataset_test_split")
    sources.finish()
    words.lost("zlaunch reads files, not streams", "streaming", "dataset_streaming")
    words.unused("zlaunch shuffles every epoch", "shuffle_dataset")


def _loss(words: Words) -> None:
    draft = words.draft
    only_answers = words.flag("assistant_only_loss") or words.flag("completion_only_loss")
    if not only_answers:
        reason = "TRL puts loss on the questions of conversations too; here only answers carry loss"
        draft.lost.append(Note("assistant_only_loss", False, reason))
    if (kind := words.text("loss_type")) not in (None, "nll", "chunked_nll"):
        draft.lost.append(Note("loss_type", kind, "zlaunch has the plain cross-entropy"))
    rule = words.text("truncation_mode", "keep_start")
    draft.set("data.overlong", "cut", "truncation_mode")
    if rule != "keep_start":
        draft.lost.append(Note("truncation_mode", rule, "zlaunch cuts the end of a record, or drops it"))
    words.carry("data.chat_template", "chat_template_path", words.text)
    if field := words.text("dataset_text_field"):
        draft.lost.append(Note("dataset_text_field", field, "records of questions and answers are trained"))
    words.unused("the chat template ends answers; padding is never trained", "eos_token", "pad_token")
