"""The `zlaunch` command: the table of commands, and what happens to errors.

Each command is a file in launcher/commands/ that is imported only when called, so that `zlaunch --help` imports nothing
but Click.
"""

from __future__ import annotations

import importlib
import os
import sys

# `python -m launcher` and an empty entry of PYTHONPATH let the working directory come before the standard library. The
# user's json.py, click.py or train.py there is not what zlaunch imports.
_LIBRARY = os.path.dirname(os.__file__)
_FIRST = sys.path.index(_LIBRARY) if _LIBRARY in sys.path else 0
if os.path.exists(os.curdir) and not os.path.samefile(os.curdir, os.path.dirname(os.path.dirname(__file__))):
    sys.path[:_FIRST] = [entry for entry in sys.path[:_FIRST] if os.path.realpath(entry) != os.getcwd()]

from typing import Any

import click

from launcher import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "local": ("launcher.commands.local:local", "Train on this machine: on its GPUs, or on the CPU."),
    "plan": ("launcher.commands.plan:plan", "Predict the memory, settings and speed of a job."),
    "data": ("launcher.commands.data:data", "Check the records of a job: data check JOB."),
    "ssh": ("launcher.commands.ssh:ssh", "Train on a list of hosts over SSH."),
    "slurm": ("launcher.commands.slurm:slurm", "Train on a Slurm cluster."),
    "build": ("launcher.commands.build:build", "Build the training image and pin it in image.lock."),
    "image": ("launcher.commands.image:image", "Copy the image to hosts without a registry: save, load, list."),
    "completion": ("launcher.commands.completion:completion", "Complete commands, runs and keys in your shell."),
    "init": ("launcher.commands.init:init", "Write a commented job.yaml."),
    "keys": ("launcher.commands.keys:keys_", "Explain the keys of a job, also by other programs' names for them."),
    "explain": ("launcher.commands.explain:explain", "Explain the code of an error: explain ZL-DATA-02."),
    "schema": ("launcher.commands.schema:schema", "Print the JSON Schema of a job file."),
    "list": ("launcher.commands.list:list_", "List the runs."),
    "watch": ("launcher.commands.watch:watch", "Show a run live, from any terminal."),
    "status": ("launcher.commands.status:status", "Show the state and progress of a run."),
    "logs": ("launcher.commands.logs:logs", "Print a run's logs, live with -f."),
    "cancel": ("launcher.commands.cancel:cancel", "Cancel a run or a sweep; checkpoints are kept."),
    "resume": ("launcher.commands.resume:resume", "Continue a run or a sweep from its newest checkpoints."),
    "report": ("launcher.commands.report:report", "Compare runs, or the points of a sweep, in a table."),
    "ui": ("launcher.commands.ui:ui", "Show the runs in a browser, live."),
    "templates": (
        "launcher.commands.templates:templates",
        "Use your own batch script, node.sh, ds_config: list, eject, diff.",
    ),
    "doctor": (
        "launcher.commands.doctor:doctor",
        "Check this machine, hosts, a cluster or a network: doctor, doctor ssh, slurm, net.",
    ),
    "hostfile": ("launcher.commands.hostfile:hostfile", "Write the hosts and slots of a Slurm allocation."),
    "pull": ("launcher.commands.pull:pull", "Copy the results of a run on other machines here."),
    "rm": ("launcher.commands.rm:rm", "Remove runs that are over, here and on their hosts."),
    "clean": ("launcher.commands.clean:clean", "Remove dry runs, old checkpoints and caches."),
    "reap": ("launcher.commands.reap:reap", "Kill processes that dead runs left on hosts."),
    "eval": ("launcher.commands.eval:evaluate", "Measure a run's adapter on records."),
    "export": ("launcher.commands.export:export", "Write the adapter, merged weights or an Ollama model."),
    "chat": ("launcher.commands.chat:chat", "Talk to a run's adapter."),
    "convert": ("launcher.commands.convert:convert", "Convert a ChatGLM or Baichuan checkpoint."),
    "push": ("launcher.commands.push:push", "Send a run's adapter to the Hugging Face Hub."),
    "predict": ("launcher.commands.predict:predict", "Answer every record of a file with a run's adapter."),
    "generate": ("launcher.commands.generate:generate", "Answer a prompt with a run's adapter."),
}
"""name -> (module:attribute, one line of help)."""


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            args = _field_words().command_line(ctx, args, list(COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from launcher.machine import installation

        click.echo(f"zlaunch {__version__} (revision {installation.source_revision()})")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Print the version and the source revision, and exit.",
)  # fmt: skip
def cli() -> None:
    """LoRA fine-tuning of language models: one job file for local GPUs, SSH hosts and Slurm.

    RUN is a run's id, its name or an unambiguous prefix, a run directory, or `last`, the run that was started last.
    Runs are kept in $ZLAUNCH_RUNS (default ./runs).
    """


def main() -> None:
    """Run the command line. A mistake of the user ends in a clear message, a bug of ours in a traceback."""
    if instruction := os.environ.pop("_ZLAUNCH_COMPLETE", ""):  # a shell asks what may follow
        sys.exit(importlib.import_module("launcher.commands.completing").main(cli, instruction))
    from launcher.machine import output
    from launcher.machine.interrupts import like_ctrl_c
    from launcher.machine.language import spoken

    output.protect()
    if spoken.is_chinese():
        from launcher.machine.language.help_page import HelpPage

        click.Context.formatter_class = HelpPage
    with like_ctrl_c():
        status = _status()
    try:
        sys.stdout.flush()
    except OSError as error:
        status = _output_failed(error)
    output.make_optional()  # Python flushes once more, after all handlers
    sys.exit(status)


def _status() -> int:
    """Run the command; return its exit status, after a message for every error that is no bug."""
    from launcher.errors import UsageError, ZlaunchError
    from launcher.machine.language.spoken import tell
    from launcher.machine.output import OutputError

    try:
        for word in sys.argv[1:]:
            if any(0xDC80 <= ord(char) <= 0xDCFF for char in word):  # a byte that Python could not decode
                encoding = sys.getfilesystemencoding()
                raise UsageError(
                    f"{word!r} is not text in {encoding}",
                    hint="use UTF-8, for example LC_ALL=C.UTF-8",
                    code="ZL-OPT-03",
                )
        status = cli(standalone_mode=False)
    except click.ClickException as error:
        return _refuse(_field_words().explained(error) if isinstance(error, click.UsageError) else error)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except ZlaunchError as error:
        tell(error)
        return error.exit_code
    except (BrokenPipeError, OutputError) as error:  # `zlaunch logs | head`
        return _output_failed(error)
    except OSError as error:
        from launcher.machine.storage import storage_error

        told = storage_error(error, "cannot use")
        if told is None or _is_ours(error):
            raise
        tell(told)
        return told.exit_code
    return status if isinstance(status, int) else 0


def _refuse(error: click.ClickException) -> int:
    """Say what is wrong with a command line; return the exit status."""
    from launcher.errors import UsageError
    from launcher.machine.language import spoken

    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        sys.stderr.write(context.get_usage() + "\n")
        if context.command.get_help_option(context) is not None:
            spoken.say(f"Try '{context.command_path} {context.help_option_names[0]}' for help.")
    spoken.tell(UsageError(error.format_message(), code="ZL-OPT-04"))
    return error.exit_code


def _field_words() -> Any:
    """The words of other programs; imported only for a command line that is not understood."""
    return importlib.import_module("launcher.commands.field_words")


def _is_ours(error: OSError) -> bool:
    """Whether a file of the installation is concerned, or none: a bug or a broken installation."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    return not name or os.path.abspath(name).startswith(os.path.dirname(os.path.abspath(__file__)))


def _output_failed(error: OSError) -> int:
    """The exit status, after a message unless the reader simply left. What is left to write is dropped."""
    from launcher.machine import output

    output.make_optional()
    if isinstance(error, BrokenPipeError):
        return 141
    from launcher.errors import TargetError
    from launcher.machine.language.spoken import tell

    tell(TargetError(f"cannot write the output: {error.strerror}", code="ZL-FILE-03"))
    return 1
