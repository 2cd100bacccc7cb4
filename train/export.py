"""Export what a run learned for use elsewhere.

    python -m train.export --run-dir RUN --to adapter|merged|ollama --out DIR

adapter   the adapter in PEFT's format, with its tokenizer
merged    one model in safetensors with tokenizer, chat template and stop tokens; plain transformers loads it
ollama    the same with a Modelfile beside it: ollama create NAME -f DIR/Modelfile
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train import dist
from train.errors import report
from train.exports.kinds import EXPORTS, export


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--to", choices=tuple(EXPORTS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    dist.prepare(dist.from_environment("cpu", {}))  # merging is one pass over the weights: a GPU would not help
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        export(options.run_dir, options.to, options.out)
    except Exception as error:
        return report(error, None, None, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
