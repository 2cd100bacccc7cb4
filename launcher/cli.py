"""The `zlaunch` command: which commands there are, and how errors end.

Commands live in launcher/commands/, one file a subject, imported only when called: `zlaunch --help` costs no more
than Click itself.
"""

from __future__ import annotations

import importlib
import sys

import click

from launcher import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "local": ("launcher.commands.local:local", "Train on this machine's GPUs, or on CPU ranks."),
    "plan": ("launcher.commands.plan:plan", "Show what a job needs and how fast it is, before it runs."),
    "data": ("launcher.commands.data:data", "Look at a job's records before anything is queued: data check JOB."),
    "ssh": ("launcher.commands.ssh:ssh", "Train on a list of hosts over SSH."),
    "slurm": ("launcher.commands.slurm:slurm", "Train on a Slurm cluster."),
    "build": ("launcher.commands.build:build", "Build the training image and pin it in image.lock."),
    "image": ("launcher.commands.image:image", "Move the image to hosts without a registry."),
    "init": ("launcher.commands.init:init", "Write a commented job.yaml."),
    "list": ("launcher.commands.list:list_", "List the runs."),
    "status": ("launcher.commands.status:status", "Show what a run does or did."),
    "logs": ("launcher.commands.logs:logs", "Print a run's logs, live with -f."),
    "cancel": ("launcher.commands.cancel:cancel", "End a run or a sweep, keeping checkpoints."),
    "resume": ("launcher.commands.resume:resume", "Go on with a run or a sweep from the newest checkpoints."),
    "report": ("launcher.commands.report:report", "Compare runs, or the points of a sweep, in a table."),
    "templates": ("launcher.commands.templates:templates", "Keep a batch script of your own: list, eject, diff."),
    "doctor": ("launcher.commands.doctor:doctor", "Look for what would stop a run: doctor ssh --hosts ..."),
    "pull": ("launcher.commands.pull:pull", "Bring home what a run on hosts or a cluster made."),
    "reap": ("launcher.commands.reap:reap", "End what dead runs left on hosts."),
    "eval": ("launcher.commands.eval:evaluate", "Measure a run's adapter on records."),
    "export": ("launcher.commands.export:export", "Write an adapter, merged weights or an Ollama model."),
    "chat": ("launcher.commands.chat:chat", "Talk to a run's adapter."),
    "convert": ("launcher.commands.convert:convert", "Convert a ChatGLM or Baichuan checkpoint."),
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
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="zlaunch")
def cli() -> None:
    """LoRA fine-tuning of language models: one job, the same run on local GPUs, SSH hosts or Slurm.

    RUN is a run id, an unambiguous beginning of one, a run directory, or `last`. Runs live in ./runs or $ZLAUNCH_RUNS.
    """


def main() -> None:
    """Run the command line; a user's mistake ends in one clear message, a bug of ours in a traceback."""
    from launcher.errors import ZlaunchError

    try:
        status = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except ZlaunchError as error:
        click.echo(f"error: {error}", err=True)
        if error.hint:
            click.echo(f"  -> {error.hint}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `zlaunch logs | head`
        sys.stderr.close()
        sys.exit(141)
    sys.exit(status if isinstance(status, int) else 0)
