"""Answers from a model: in batches for evaluation, or as a stream for a person.

python -m train.generate --run-dir RUN --prompt "..."     prints the answer as it comes
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train.answers.generation import stop_ids, stream
from train.answers.trained import any_device, load_adapted, trained_system


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
        from train.data.prompts import prompt_text

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
