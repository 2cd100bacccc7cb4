"""Commands that use what a run has learned, by the training environment's interpreter: eval, export, chat, generate,
convert.

What they do stands in modules of train/ of those names (evaluate, export ...); here is only how they are started.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from launcher.commands.runs import run_named
from launcher.errors import UsageError
from launcher.machine import facts, process, trainer
from launcher.rundir.directory import RunDir

Function = TypeVar("Function", bound=Callable[..., Any])


def find(run: str) -> RunDir:
    """The run, which must have an adapter: finished, or with a checkpoint. Raises RunNotFound and UsageError."""
    found = run_named(run)
    if not (found.adapter / "adapter_config.json").exists() and not found.checkpoint_steps():
        raise UsageError(f"{found.run_id} has no adapter yet", hint=f"zlaunch status {found.run_id}")
    return found


def in_training_environment(found: RunDir, words: Sequence[str]) -> int:
    """Run `<the run's python> WORDS` on this terminal.

    Where that is our own interpreter, with our own train package, which knows runs of older versions too; another
    environment gets the run's snapshot of it.
    """
    python = str(found.read_plan()["launch"]["python"])
    own = python == facts.this_python()
    return process.passthrough([python, *words], env=trainer.environment(None if own else found.code))


_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where it computes."
)


def answer_options(*, max_new_tokens: int) -> Callable[[Function], Function]:
    """How the adapter answers."""

    def decorate(function: Function) -> Function:
        function = click.option("--base", is_flag=True, help="Without the adapter, for comparison.")(function)
        for flag, number, default, text in (
            ("--temperature", click.FloatRange(min=0), 0.0, "0: the likeliest answer."),
            ("--max-new-tokens", click.IntRange(min=1), max_new_tokens, "Tokens of an answer."),
        ):
            function = click.option(flag, type=number, default=default, show_default=True, help=text)(function)
        system = click.option("--system", help="System message; default: the run's data.system.")
        return system(_device(function))

    return decorate


def answer_words(values: dict[str, Any]) -> list[str]:
    """The values of answer_options as the training program's own options. With `=`: texts may begin with a dash."""
    options = {key.replace("_", "-"): value for key, value in values.items() if value is not None}
    flags = ["--base"] if options.pop("base") else []
    return [*(f"--{name}={value}" for name, value in options.items()), *flags]


def _folder(data: str | None) -> str:
    """A directory's name for scores on these records: files of one name in two places are not the same, nor is an
    eval.jsonl the job's own data.eval."""
    if data is None:
        return "eval"
    if data.startswith("hub:"):
        return data.replace(":", "-").replace("/", "--")
    return f"{Path(data).stem}-{hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:6]}"


@click.command("eval")
@click.argument("run")
@click.option("--data", metavar="FILE|hub:NAME", help="Records, as data.eval names them; default: the job's data.eval.")
@_device
@click.option("--max-records", type=click.IntRange(min=1), help="Only so many of them.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON object.")
def evaluate(run: str, data: str | None, device: str, max_records: int | None, as_json: bool) -> int:
    """Measure RUN's adapter on records: loss, and its answers by each task's metrics; on all local GPUs."""
    found = find(run)
    gpus = len(facts.local_gpus()) if device != "cpu" else 0
    hub = bool(data and data.startswith("hub:"))
    if data and not hub and not Path(data).is_file():
        raise UsageError(f"--data: there is no file {data}")
    place = found.evaluations / _folder(data)
    words = ["-m", "train.evaluate", "--run-dir", str(found.path), "--device", device, "--out", str(place)]
    words += ["--data", data if hub else str(Path(data).absolute())] if data else []
    words += ["--max-records", str(max_records)] if max_records else []
    if gpus > 1:
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", *words]
    status = in_training_environment(found, words)
    if status:
        return status
    scores = found.read_json(place / "scores.json") or {}
    if as_json:
        click.echo(json.dumps(scores, ensure_ascii=False))
        return 0
    from launcher.show import final  # Rich

    final.print_scores(scores)
    click.echo(f"predictions: {place / 'predictions.jsonl'}")
    return 0


@click.command()
@click.argument("run")
@click.option(
    "--to",
    "kind",
    type=click.Choice(["adapter", "merged", "ollama"]),
    default="merged",
    show_default=True,
    help="What to write.",
)
@click.option("--out", type=click.Path(path_type=Path), help="A new directory; default: RUN/export-KIND.")
def export(run: str, kind: str, out: Path | None) -> int:
    """Write RUN's result for use elsewhere: the adapter, merged weights, or merged weights with a Modelfile."""
    found = find(run)
    place = (out or found.path / f"export-{kind}").absolute()
    return in_training_environment(
        found, ["-m", "train.export", "--run-dir", str(found.path), "--to", kind, "--out", str(place)]
    )


@click.command()
@click.argument("run")
@answer_options(max_new_tokens=512)
def chat(run: str, **answering: Any) -> int:
    """Talk to RUN's adapter; /reset forgets, /exit ends."""
    found = find(run)
    return in_training_environment(found, ["-m", "train.chat", "--run-dir", str(found.path), *answer_words(answering)])


@click.command()
@click.argument("run")
@click.argument("prompt")
@answer_options(max_new_tokens=256)
def generate(run: str, prompt: str, **answering: Any) -> int:
    """Answer PROMPT with RUN's adapter, printing tokens as they come."""
    found = find(run)
    words = ["-m", "train.generate", "--run-dir", str(found.path), f"--prompt={prompt}"]
    return in_training_environment(found, [*words, *answer_words(answering)])


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
def convert(source: Path, target: Path) -> int:
    """Convert a ChatGLM or Baichuan checkpoint in its original layout to one that plain transformers reads."""
    argv = [facts.this_python(), "-m", "train.convert", str(source.absolute()), str(target.absolute())]
    return process.passthrough(argv, env=trainer.environment())
