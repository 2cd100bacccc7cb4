"""Export what a run learned for use elsewhere.

    python -m train.export --run-dir RUN --to adapter|merged|ollama --out DIR [--verify]
    python -m train.export --run-dir RUN --server URL

adapter   the adapter in PEFT's format, with its tokenizer
merged    one model in safetensors with tokenizer, chat template and stop tokens; plain transformers loads it
ollama    the same with a Modelfile beside it: ollama create NAME -f DIR/Modelfile

--verify compares DIR with the run, and --server a server that has the export: exit status 1 if they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from train import dist
from train.errors import EXIT_FAILED, guard_output, report
from train.exports.kinds import EXPORTS, checkpoint_name, export
from train.exports.server import Server
from train.exports.verify import Verification, verify_directory, verify_server
from train.rundir.counter import Lines, doing


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--to", choices=tuple(EXPORTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--verify", action="store_true", help="export if DIR does not exist, and compare it with the run"
    )
    parser.add_argument("--server", help="compare a server with OpenAI's interface instead of a directory")
    parser.add_argument("--server-model", help="the name that the server has for the model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--checkpoint", type=checkpoint_name, help="best, last, step-N or average:last:N")
    options = parser.parse_args(arguments)
    if options.server is None and (options.to is None or options.out is None):
        parser.error("--to and --out are required without --server")
    dist.prepare(dist.from_environment("cpu", {}))  # merging is one pass over the weights: a GPU would not help
    guard_output()
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        with Lines():
            return run(options)
    except Exception as error:
        return report(error, None, None, 0)


def run(options: argparse.Namespace) -> int:
    """Export, verify or both; returns the exit status."""

    def tell(text: str) -> None:
        print(text, file=sys.stderr if options.json else None, flush=True)
        doing(text)

    if options.server is not None:
        doing("asking the run's own model and the server")
        server = Server.at(options.server, options.server_model)
        found = verify_server(options.run_dir, server, options.prompts, options.max_new_tokens, options.checkpoint)
        return show(found, options.json)
    if not options.verify or not options.out.exists():
        export(options.run_dir, options.to, options.out, tell, options.checkpoint)
    if not options.verify:
        return 0
    doing("asking the run's own model and the export")
    out = options.out.absolute()
    found = verify_directory(options.run_dir, out, options.prompts, options.max_new_tokens, options.checkpoint)
    return show(found, options.json)


def show(found: Verification, as_json: bool) -> int:
    if as_json:
        print(json.dumps(found.as_json(), ensure_ascii=False))
    else:
        print("\n".join(found.lines()))
    return 0 if found.agrees else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
