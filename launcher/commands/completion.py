"""`zlaunch completion`: let bash, zsh or fish complete commands, options, runs and keys of a job."""

from __future__ import annotations

import os
from pathlib import Path

import click

from launcher.commands import completing
from launcher.errors import UsageError
from launcher.rundir.directory import write_atomic

SHELLS = click.Choice(list(completing.SHELLS))
shell_option = click.option("--shell", type=SHELLS, help="Shell (default: the one that runs this command).")


@click.group()
def completion() -> None:
    """Complete commands, options, runs and the keys of a job with TAB, in bash (4.4 or newer), zsh and fish."""


@completion.command()
@shell_option
@click.pass_context
def install(ctx: click.Context, shell: str | None) -> None:
    """Install the completion for your user. A second call changes nothing.

    bash and zsh read it from a line that is added to ~/.bashrc or ~/.zshrc; fish reads its own directory.
    """
    shell = shell or running_shell()
    file, startup = places(shell)
    write_atomic(file, completing.script(shell))
    completing.table(ctx.find_root().command)  # so that the first TAB is quick
    click.echo(f"wrote {file}")
    if startup is not None and add_line(startup, f'[ -r "{file}" ] && . "{file}"  # completion of zlaunch'):
        click.echo(f"added a line to {startup}")
    click.echo(f"open a new {shell}, or: exec {shell}")


@completion.command()
@shell_option
def show(shell: str | None) -> None:
    """Print the script, to be installed in another place."""
    click.echo(completing.script(shell or running_shell()), nl=False)


def running_shell() -> str:
    """The shell that this command was started from, else the user's login shell. Raises UsageError."""
    names = []
    try:
        names.append(Path(f"/proc/{os.getppid()}/comm").read_text(encoding="utf-8", errors="replace").strip())
    except OSError:
        pass
    names.append(Path(os.environ.get("SHELL", "")).name)
    for name in names:
        if name.lstrip("-") in completing.SHELLS:
            return name.lstrip("-")
    raise UsageError(
        f"this is no shell with completion: {' or '.join(filter(None, names)) or 'unknown'}",
        hint=f"name one: --shell {'|'.join(completing.SHELLS)}",
        code="ZL-OPT-03",
    )


def places(shell: str) -> tuple[Path, Path | None]:
    """(the file of the script, the startup file that must read it; None: the shell finds the script itself)."""
    home = Path.home()
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return config / "fish" / "completions" / "zlaunch.fish", None
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    startup = home / ".bashrc" if shell == "bash" else Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
    return data / "zlaunch" / f"completion.{shell}", startup


def add_line(file: Path, line: str) -> bool:
    """Append a line to a startup file unless it has it; return whether it was appended."""
    text = file.read_text(encoding="utf-8", errors="surrogateescape") if file.exists() else ""
    if line in text.splitlines():
        return False
    with file.open("a", encoding="utf-8") as end:
        end.write(f"{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n")
    return True
