"""Answers from a model: in batches for evaluation, or as a stream for a person.

python -m train.generate --run-dir RUN --prompt "..."     prints the answer as it comes
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def answer_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: list[int], synced: bool
) -> list[str]:
    """Greedy answers to token prompts, padded on the left. `synced`: ZeRO-3, where every rank must take every step."""
    import torch

    device = model.get_input_embeddings().weight.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=generation_config(tokenizer, max_new_tokens, stop),
        synced_gpus=synced,
    )
    return [text_of(tokenizer, row[width:].tolist(), stop) for row in out]


def generation_config(tokenizer: Any, max_new_tokens: int, stop: list[int], temperature: float = 0.0) -> Any:
    """Greedy (temperature 0) or sampled, whatever the model's own generation_config.json says.

    transformers fills what is not given here from that file, and many chat models have a penalty in it (Qwen2.5: 1.05
    to 1.1 for every token that the question holds, such as the names of the labels to choose from).
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        **({"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}),
        **NO_PENALTIES,
        eos_token_id=stop,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )


NO_PENALTIES: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}


def stop_ids(tokenizer: Any, config: Any) -> list[int]:
    """Tokens that end an answer: the end of sequence, what the template writes after answers, the family's own."""
    from train.families import family_of
    from train.tokens import end_ids

    known = tokenizer.get_vocab()
    own = [known[token] for token in family_of(config.to_dict()).stop_tokens if token in known]
    return list(dict.fromkeys([*end_ids(tokenizer), *own]))


def text_of(tokenizer: Any, ids: list[int], stop: list[int]) -> str:
    """The text up to the first stop token."""
    end = next((place for place, token in enumerate(ids) if token in stop), len(ids))
    return str(tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()


def stream(
    model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int, stop: list[int], temperature: float = 0.0
) -> Iterator[str]:
    """Pieces of the answer to a rendered prompt, as they come; who leaves early (a Ctrl-C, a closed iterator) ends the
    model's work after the token that it is at."""
    import threading

    import torch
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    encoded = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}  # some give token types as well
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []
    left = threading.Event()

    def has_left(ids: Any, _scores: Any, **_others: Any) -> Any:
        return torch.full((len(ids),), left.is_set(), dtype=torch.bool, device=ids.device)

    def work() -> None:
        try:
            config = generation_config(tokenizer, max_new_tokens, stop, temperature)
            stopping: Any = StoppingCriteriaList([has_left])
            model.generate(**inputs, generation_config=config, streamer=streamer, stopping_criteria=stopping)
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:  # a process that ends in the middle of the model's work is aborted by the C++ library
        left.set()
        thread.join()
    if failure:
        raise failure[0]


def load_adapted(run: Path, *, device: str, bare: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a run's newest adapter, with plain transformers and PEFT; `bare`: the base model alone.

    The base is quantised as the run had it. Raises UserError.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train import config as schema
    from train.basemodel import register_types
    from train.errors import UserError
    from train.model import keep_four_bit_unpacked, quantization_options

    adapter, trained = newest_adapter(run), schema.load(run / "train.json")
    config = adapter / "adapter_config.json"
    if not config.is_file():
        raise UserError(f"{adapter} holds no adapter", "a run has one after its first checkpoint or at its end")
    recorded = json.loads(config.read_text(encoding="utf-8"))
    quantised = trained.model.quantization != "none"
    dtype: Any = torch.float32 if device == "cpu" else torch.bfloat16 if quantised else "auto"
    options: dict[str, Any] = {"revision": recorded.get("revision"), "dtype": dtype}
    options["trust_remote_code"] = trained.model.trust_remote_code
    if quantised:
        options |= {**quantization_options(trained, dtype), "device_map": {"": device}}
    base = recorded["base_model_name_or_path"]
    register_types(Path(base))
    try:
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    except OSError as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"the base model {base} of {adapter} cannot be loaded: {first}") from error
    keep_four_bit_unpacked(model)
    if not bare:
        model = PeftModel.from_pretrained(model, adapter)
    return (model if quantised else model.to(device)).eval(), AutoTokenizer.from_pretrained(adapter)


def newest_adapter(run: Path) -> Path:
    """The finished adapter, else that of the newest complete checkpoint."""
    from train.checkpoint import complete

    if (run / "adapter" / "adapter_config.json").is_file():
        return run / "adapter"
    found = complete(run / "checkpoints")
    return found[-1] / "adapter" if found else run / "adapter"


def any_device() -> str:
    """`cuda` where there is a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def trained_system(run: Path) -> str | None:
    """The system message that every record of the run was trained with."""
    from train import config

    return config.load(run / "train.json").data.system


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.generate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--system", default=None, help="default: the run's data.system")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--base", action="store_true", help="the base model without the adapter")
    options = parser.parse_args(arguments)

    from train import dist
    from train.errors import report

    device = options.device if options.device != "auto" else any_device()
    world = dist.from_environment(device, {})
    dist.prepare(world)
    try:
        dist.check_device(world)
        from train.tokens import prompt_text

        model, tokenizer = load_adapted(options.run_dir, device=device, bare=options.base)
        system = options.system if options.system is not None else trained_system(options.run_dir)
        turns = [("system", system)] if system else []
        prompt = prompt_text(tokenizer, [*turns, ("user", options.prompt)])
        stop = stop_ids(tokenizer, model.config)
        length, warmth = options.max_new_tokens, options.temperature
        for piece in stream(model, tokenizer, prompt, max_new_tokens=length, stop=stop, temperature=warmth):
            print(piece, end="", flush=True)
        print()
    except Exception as error:
        return report(error, None, None, 0)
    except KeyboardInterrupt:
        print()
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
