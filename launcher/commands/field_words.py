"""Commands and options of other programs: understood, or answered with the right command line.

Imported only when a word of a command line is not known.
"""

from __future__ import annotations

import shlex

import click

from launcher.job.explain import known_keys
from launcher.job.reference import peer_words, unknown_words

ALIASES = {
    "ls": ("list",), "ps": ("list",), "runs": ("list",),
    "stop": ("cancel",), "kill": ("cancel",), "scancel": ("cancel",),
    "tail": ("logs", "-f"), "log": ("logs",), "attach": ("watch",), "top": ("watch",),
    "show": ("status",), "info": ("status",), "describe": ("status",),
    "delete": ("rm",), "remove": ("rm",), "evaluate": ("eval",), "infer": ("generate", "predict"),
}  # fmt: skip
"""Words for a command of ours that does the same."""
TRAIN = ("train", "run", "sft", "finetune", "fine-tune", "launch", "submit", "start", "pt", "sweep")
"""Words for training, which has a command for each place."""
LAUNCHERS = ("torchrun", "deepspeed", "accelerate", "python", "python3", "mpirun", "sbatch", "srun")
ANSWERS = {
    "help": "zlaunch --help lists the commands, zlaunch COMMAND --help explains one",
    "version": "zlaunch --version prints it",
    "merge": "zlaunch export RUN --to merged writes merged weights",
    "deploy": "zlaunch export RUN --to ollama makes a model for Ollama; zlaunch chat RUN talks to the adapter",
    "serve": "zlaunch export RUN --to ollama makes a model for Ollama; zlaunch chat RUN talks to the adapter",
    "webui": "zlaunch ui shows the runs in a browser, and makes new ones",
    "web-ui": "zlaunch ui shows the runs in a browser, and makes new ones",
    "board": "zlaunch ui shows the runs in a browser; train.report_to feeds TensorBoard",
    "tensorboard": "train.report_to: tensorboard feeds it; zlaunch ui shows the runs in a browser",
    "config": "zlaunch init writes a job file, zlaunch keys explains its keys",
    "env": "zlaunch doctor checks this machine",
    "preprocess": "zlaunch data check JOB checks the records; they become tokens when the training starts",
    "dpo": "only supervised fine-tuning is trained, not preferences",
    "rlhf": "only supervised fine-tuning is trained, not preferences",
}  # fmt: skip
SLURM_LETTERS = {
    "-A": "account", "-a": "array", "-C": "constraint", "-c": "cpus-per-task", "-e": "error", "-G": "gpus",
    "-J": "job-name", "-M": "clusters", "-N": "nodes", "-n": "ntasks", "-o": "output", "-p": "partition", "-q": "qos",
    "-t": "time", "-W": "wait", "-w": "nodelist", "-x": "exclude",
}  # fmt: skip
"""Short options of sbatch."""


def command_line(ctx: click.Context, args: list[str], commands: list[str]) -> list[str]:
    """A command line whose first word is no command, with ours instead. Raises click.UsageError with the right one."""
    word, *rest = args
    if word.lower() in ALIASES:
        ours = ALIASES[word.lower()]
        no_run = ours[0] in ("logs", "status") and all(given.startswith("-") for given in rest)
        return [*ours, *rest, *(["last"] if no_run and "--help" not in rest and "-h" not in rest else [])]
    if word.lower() in TRAIN:
        line = shlex.join(rest) or "job.yaml"
        ctx.fail(
            f"no command {word!r}: each place has its own.\n"
            f"  zlaunch local {line}   on this machine\n"
            f"  zlaunch ssh {line}     on hosts over SSH\n"
            f"  zlaunch slurm {line}   on a Slurm cluster"
        )
    if word in LAUNCHERS:
        ctx.fail(
            f"no command {word!r}: zlaunch starts the ranks itself. A program of your own stands after `--`:\n"
            "  zlaunch local --gpus 4 -- train.py ARGS"
        )
    if word.lower() in ANSWERS:
        ctx.fail(f"no command {word!r}: {ANSWERS[word.lower()]}.")
    if word.endswith((".yaml", ".yml", ".json")):
        ctx.fail(f"{word!r} is no command. To train by it on this machine:\n  zlaunch local {shlex.join(args)}")
    near = unknown_words.misspelled(word, commands)
    ctx.fail(f"no command {word!r}." + (f" Did you mean {near[0]!r}?" if near else " zlaunch --help lists them."))


def explained(error: click.UsageError) -> click.UsageError:
    """The error, with what was meant where an option is unknown."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        if meant := _meant(error.option_name, error.ctx):
            return click.UsageError(f"No such option {error.option_name!r}. {meant}", error.ctx)
        return click.UsageError(f"No such option {error.option_name!r}.", error.ctx)
    if "unexpected extra argument" in error.message and "=" in error.message:
        return click.UsageError(f"{error.message}. A key of the job is set by --set KEY=VALUE.", error.ctx)
    return error


def _meant(option: str, ctx: click.Context) -> str:
    """What to write instead of an option; empty: nothing is known of it."""
    options = {peer_words.plain(name): name for param in ctx.command.params for name in param.opts if name[:2] == "--"}
    place = ctx.info_name if ctx.info_name in unknown_words.BACKENDS else ""
    word = SLURM_LETTERS.get(option, option) if place == "slurm" else option
    if own := options.get(peer_words.plain(word)):
        return f"Did you mean {own!r}?"
    if found := unknown_words.meanings(word, place):
        return _as_options(option, found, ctx)
    if elsewhere := [meaning for meaning in peer_words.find(word) if meaning.key]:
        key = elsewhere[0].key
        return f"It is for another place: `{key}` of `zlaunch {key.partition('.')[0]}`."
    if (keys := _keys(peer_words.plain(word), place)) and "set" in options:
        return f"Write --set {keys[0]}=VALUE." if len(keys) == 1 else f"Write --set with one of: {', '.join(keys)}."
    if len(peer_words.plain(word)) == 1:
        return ""
    if near := unknown_words.misspelled(word, options):
        return f"Did you mean {options[near[0]]!r}?"
    near = unknown_words.misspelled(word, peer_words.names()) if len(word) >= unknown_words.LONG else []
    return _as_options(f"--{near[0]}", unknown_words.meanings(near[0], place), ctx) if near else ""


def _keys(word: str, place: str) -> list[str]:
    """Keys of that name, with or without their section."""
    named = [key for key in known_keys() if word in (key, key.replace(".", "_"), key.rpartition(".")[2])]
    return [key for key in named if unknown_words.counts_in(key, place)]


def _as_options(option: str, found: list[peer_words.Meaning], ctx: click.Context) -> str:
    return " ".join(_as_option(option, meaning, ctx) for meaning in found)


def _as_option(option: str, meaning: peer_words.Meaning, ctx: click.Context) -> str:
    """How this command is given what the option of another program means."""
    if not meaning.key:
        return f"There is none: {meaning.note}."
    parameter = "key__" + meaning.key.replace(".", "__")
    own = next((param.opts[0] for param in ctx.command.params if param.name == parameter), "")
    can_set = any("--set" in param.opts for param in ctx.command.params)
    instead = own or (f"--set {meaning.key}=VALUE" if can_set else f"`{meaning.key}` of the job")
    return f"{option} is {instead} here" + (f": {meaning.note}." if meaning.note else ".")
