"""Ask a model directory as anybody would: a process of its own, transformers and PEFT, nothing of this project.

    python fresh.py < request.json > answers.json

request: {"directory", "conversations": [[{"role", "content"}, ...], ...], "max_new_tokens", "trust_remote_code",
"quantization": a quantization_config or null}. Prints [{"prompt_ids", "answer_ids", "answer"}, ...].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    request = json.load(sys.stdin)
    model, tokenizer = load(request)
    print(json.dumps([ask(model, tokenizer, turns, request["max_new_tokens"]) for turns in request["conversations"]]))


def load(request: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
        GenerationConfig,
    )

    place = Path(request["directory"])
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": request["trust_remote_code"]}
    if request["quantization"]:
        options["quantization_config"] = request["quantization"]
    base, revision, is_adapter = str(place), None, (place / "adapter_config.json").is_file()
    if is_adapter:
        told = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = told["base_model_name_or_path"], told.get("revision")
    kind: Any = AutoModelForCausalLM
    config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=request["trust_remote_code"])
    if config.get_text_config() is not config and type(config) in AutoModelForImageTextToText._model_mapping:
        kind = AutoModelForImageTextToText  # it also sees; its card says the same
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=request["trust_remote_code"])
    model = kind.from_pretrained(base, revision=revision, **options)
    if is_adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, place)
    model.eval()
    if (place / "generation_config.json").is_file():  # PEFT does not look for one beside an adapter
        model.generation_config = GenerationConfig.from_pretrained(place)
    return model, tokenizer


def ask(model: Any, tokenizer: Any, turns: list[dict[str, str]], max_new_tokens: int) -> dict[str, Any]:
    """The greedy answer; what ends it is what the directory says."""
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = prompt["input_ids"]
    inputs = {"input_ids": ids, "attention_mask": prompt["attention_mask"]}
    answer = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[0, ids.shape[1] :].tolist()
    text = tokenizer.decode(answer, skip_special_tokens=True).strip()
    return {"prompt_ids": ids[0].tolist(), "answer_ids": answer, "answer": text}


if __name__ == "__main__":
    main()
