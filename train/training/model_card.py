"""README.md of an adapter: what it is, how it was trained, what it scored, how to load and serve it.

Pure. It names files without their directories, because paths often hold names of people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config import HUBS, Data, TrainConfig
from train.model.base import HUB_ID


def card(
    config: TrainConfig,
    base: str,
    revision: str | None,
    facts: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str] = (),
    *,
    sees: bool = False,
) -> str:
    """`facts`: more lines of "Training". `scores`: `before` and `after` training. `notes`: warnings of the run.

    `sees`: the base model has more parts than its text model, and so another class of transformers loads it.
    """
    on_hub = HUB_ID.fullmatch(base) is not None
    shown = base if on_hub else Path(base).name
    head = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "zlaunch"]}
    front = "\n".join(
        [*([f"base_model: {base}"] if on_hub else []), *(f"{key}: {json.dumps(value)}" for key, value in head.items())]
    )
    rows = {"Base model": _base(shown, revision), **_training(config), **facts}
    parts = [
        f"---\n{front}\n---",
        f"# {config.run_id}\n\nA LoRA adapter for {shown}, trained with zlaunch.",
        "## Training\n\n" + _table(("setting", "value"), rows.items()),
        *_scores(scores),
        *(["## Known limits\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []),
        _usage(shown, config.data.system, "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"),
    ]
    return "\n\n".join(parts) + "\n"


def _base(shown: str, revision: str | None) -> str:
    return f"{shown} ({revision})" if revision else shown


def _training(config: TrainConfig) -> dict[str, Any]:
    lora, numbers = config.lora, config.train
    target = lora.target_modules
    length = f"{numbers.max_steps} steps" if numbers.max_steps else f"{numbers.epochs:g} epochs"
    return {
        "Data": _names(config.data, "data.train"),
        **({"Held-out data": _names(config.data, "data.eval")} if config.data.eval else {}),
        "LoRA": f"r {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}",
        **({"Ranks of their own": _pairs(lora.rank_pattern)} if lora.rank_pattern else {}),
        **({"Alphas of their own": _pairs(lora.alpha_pattern)} if lora.alpha_pattern else {}),
        **({"Layers": ", ".join(map(str, lora.layers_to_transform))} if lora.layers_to_transform else {}),
        "Target modules": target if isinstance(target, str) else ", ".join(target),
        **({"Modules trained whole": ", ".join(lora.modules_to_save)} if lora.modules_to_save else {}),
        "Length": f"{length}, {numbers.global_batch_size} records per step",
        "Learning rate": f"{numbers.learning_rate:g}, {numbers.scheduler}",
        **({"Router loss": f"weight {numbers.router_loss}"} if numbers.router_loss else {}),
        "Tokens per record": f"at most {config.data.max_length}",
        "Quantization": config.model.quantization,
        "Seed": numbers.seed,
    }


def _pairs(mapping: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in mapping.items())


def _names(data: Data, key: str) -> str:
    if key == "data.eval" and data.held_out:
        return f"{data.eval} of the records, by their hash"
    paths = [path for name, path in data.sources if name == key]
    return ", ".join(path if path.startswith(HUBS) else Path(path).name for path in paths)


def _scores(scores: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    measured = {name: found for name, found in scores.items() if found}
    if not measured:
        return []
    names = [key for key in next(iter(measured.values())) if key not in ("tasks", "unended")]
    rows = [(key, *(_number(found.get(key)) for found in measured.values())) for key in names]
    return [
        "## Scores on the held-out data\n\n" + _table(("measure", *(f"{name} training" for name in measured)), rows)
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _usage(base: str, system: str | None, loader: str) -> str:
    said = [{"role": "system", "content": system}] if system else []
    messages = json.dumps([*said, {"role": "user", "content": "Hello!"}], ensure_ascii=False)
    return f"""## Use

The chat template beside the adapter asks as in training, and `generation_config.json` holds the tokens that end an
answer. Load both:

```python
from peft import PeftModel
from transformers import {loader}, AutoTokenizer, GenerationConfig

base, adapter = {json.dumps(base)}, "."  # the base model, and this directory
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = PeftModel.from_pretrained({loader}.from_pretrained(base), adapter)
settings = GenerationConfig.from_pretrained(adapter, max_new_tokens=256)
messages = {messages}
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, generation_config=settings)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

Or serve it with vLLM:

```bash
vllm serve {base} --enable-lora --lora-modules adapter=DIRECTORY --chat-template DIRECTORY/chat_template.jinja
```

`zlaunch export RUN --to merged` writes one model that needs no adapter, and `--to ollama` one for Ollama."""
