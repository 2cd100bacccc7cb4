"""A run's model that answers on the command line, for train.generate and train.chat."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from train import dist
from train.answers.streaming import Writer
from train.answers.trained import add_checkpoint_option, best_device, find_adapter, load_adapted, trained_stop_ids
from train.data.recipe import Recipe
from train.data.tokenizer import Tokenizer
from train.errors import guard_output, report
from train.rundir import bytecode
from train.rundir.counter import Lines

Turns = list[tuple[str, str]]
"""(role, text) of each message."""


@dataclass(frozen=True)
class Session:
    model: Any
    tokenizer: Any
    stop: list[int]
    options: argparse.Namespace
    system: str | None
    """The first message of a conversation."""

    @cached_property
    def writer(self) -> Writer:
        return Writer(self.model, self.tokenizer, stop=self.stop)

    @cached_property
    def rendering(self) -> Tokenizer:
        """Training's own way from a conversation to tokens."""
        return Tokenizer(Recipe.of(self.tokenizer, max_length=self.options.max_new_tokens))

    def answer(self, turns: Turns) -> Iterator[str]:
        """Pieces of the answer to a conversation, as the model produces them.

        As in training, special tokens in contents are plain text. Raises UserError for a conversation that the chat
        template refuses.
        """
        options = self.options
        ids = self.rendering.prompt_ids(turns)
        return self.writer.pieces(ids, max_new_tokens=options.max_new_tokens, temperature=options.temperature)


def add_options(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """The options of both commands, with the default of one."""
    parser.add_argument("--run-dir", type=Path, required=True)
    add_checkpoint_option(parser)
    parser.add_argument("--system", default=None, help="default: the run's data.system")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--base", action="store_true", help="the base model without the adapter")


def run_session(options: argparse.Namespace, use: Callable[[Session], None]) -> int:
    """Load the model that the options name and let `use` talk to it; returns the exit status."""
    guard_output()
    bytecode.keep()
    device = best_device() if options.device == "auto" else options.device
    world = dist.from_environment(device, {})
    dist.prepare(world)
    try:
        dist.check_device(world)
        adapter = find_adapter(options.run_dir, options.checkpoint)
        with Lines():
            model, tokenizer = load_adapted(adapter, device=device, bare=options.base)
        system = options.system if options.system is not None else adapter.config.data.system
        use(Session(model, tokenizer, trained_stop_ids(adapter, tokenizer, model.config), options, system))
    except Exception as error:
        return report(error, None, None, 0)
    except KeyboardInterrupt:
        print()
        return 130
    return 0
