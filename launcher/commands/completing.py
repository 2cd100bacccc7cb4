"""What a shell offers after TAB: commands, options, their values, runs, and the keys of a job.

Importing the commands takes longer than one waits for a TAB. So they are read once per version into a table, a file of
the cache, and a completion makes Click's parameters from that table: it imports Click and little else.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, shell_complete, split_arg_string

from launcher import __version__

VARIABLE = "_ZLAUNCH_COMPLETE"
"""Set by the scripts of the shells: `bash_complete` and the like."""
RUNS = ("run", "runs", "names")
"""Names of arguments that mean runs."""
SWEEPS = ("cancel", "resume", "report", "rm")
"""Commands whose RUN may be a sweep."""
KEYS = ("--set", "--sweep")
FILES = (
    "--model", "--train-data", "--eval-data", "--data", "--python", "--hosts", "--hostfile", "--ssh-config",
    "--template",
)  # fmt: skip
"""Options that may name a file without being of Click's type for it."""

Table = dict[str, Any]
Choices = list[str]
"""What a key of a job means, and then the values that the schema names."""


# ------------------------------------------------------------------------------------------------ the table


def table(cli: click.Command) -> Table:
    """Return {"stamp", "command": the tree of commands, "keys": {key of a job: its Choices}}; mostly from a file."""
    file, stamp = cache_file(), _stamp()
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_bytes())
        if isinstance(found, dict) and found.get("stamp") == stamp:
            return found
    # A context of the program's own: commands keep the help option that their first context has.
    context = cli.make_context(None, [], resilient_parsing=True)
    made = {"stamp": stamp, "command": _described(context, cli), "keys": _keys()}
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
            json.dump(made, new)
        Path(new.name).replace(file)
    return made


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zlaunch" / "completion.json"


def _stamp() -> str:
    """Changes with every installation, and with every change of a checkout's commands or keys."""
    here = Path(__file__)
    schema = (here.parents[1] / "job" / "spec.py", here.parents[2] / "train" / "config.py")
    modules = [*here.parent.glob("*.py"), here.parents[1] / "cli.py", *filter(Path.exists, schema)]
    return f"{__version__} {here} {max(module.stat().st_mtime_ns for module in modules)}"


def _described(ctx: click.Context, command: click.Command) -> Table:
    """A command with its parameters and subcommands, as JSON."""
    from launcher.commands.help_groups import LaunchCommand

    found: Table = {
        "help": command.get_short_help_str(120),
        "params": [_parameter(param) for param in command.get_params(ctx)],
        "program": isinstance(command, LaunchCommand),
    }
    if isinstance(command, click.Group):
        names = command.list_commands(ctx)
        members = {name: command.get_command(ctx, name) for name in names}
        found["commands"] = {name: _described(ctx, member) for name, member in members.items() if member}
    return found


def _parameter(param: click.Parameter) -> Table:
    found: Table = {"name": param.name, "opts": [*param.opts, *param.secondary_opts], "nargs": param.nargs}
    if isinstance(param, click.Option):
        found |= {"flag": param.is_flag or param.count, "multiple": param.multiple, "help": param.help or ""}
    if isinstance(param.type, click.Choice):
        found["choices"] = list(param.type.choices)
    found["kind"] = _kind(param)
    return found


def _kind(param: click.Parameter) -> str:
    if isinstance(param, click.Argument) and param.name in RUNS:
        return "run"
    if set(KEYS) & set(param.opts) or param.name == "pattern":
        return "key"
    is_file = isinstance(param.type, click.Path) or bool(set(FILES) & set(param.opts))
    return "choice" if isinstance(param.type, click.Choice) else "file" if is_file else ""


def _keys() -> dict[str, Choices]:
    """Every key of a job that takes a value."""
    from launcher.commands.keys import cut
    from launcher.job.explain import known_choices
    from launcher.job.reference.key_reference import keys

    return {key: [cut(keys()[key].text, 60), *choices] for key, choices in known_choices().items()}


# -------------------------------------------------------------------------------------- Click's view of the table


def command_of(name: str, described: Table, keys: dict[str, Choices]) -> click.Command:
    """A command that does nothing and completes its parameters."""
    params = [_click_parameter(name, param, keys) for param in described["params"]]
    if described["program"]:
        params.append(click.Argument(["program"], nargs=-1, type=click.Path()))
    if "commands" not in described:
        return click.Command(name, params=params, short_help=described["help"], add_help_option=False)
    members = {member: command_of(member, inner, keys) for member, inner in described["commands"].items()}
    return click.Group(
        name, members, params=params, short_help=described["help"], add_help_option=False, invoke_without_command=True
    )


def _click_parameter(command: str, param: Table, keys: dict[str, Choices]) -> click.Parameter:
    kind: Any = {"choice": click.Choice(param.get("choices", ())), "file": click.Path()}.get(param["kind"])
    if "flag" not in param:
        complete = _runs_for(command in SWEEPS) if param["kind"] == "run" else None
        if param["kind"] == "key":
            complete = _key_names(keys)
        return click.Argument([param["name"]], nargs=param["nargs"], type=kind, required=False, shell_complete=complete)
    complete = _keys_for(keys, "," if "--sweep" in param["opts"] else "") if param["kind"] == "key" else None
    return click.Option(
        param["opts"], is_flag=param["flag"], multiple=param["multiple"], type=None if param["flag"] else kind,
        help=param["help"], shell_complete=complete,
    )  # fmt: skip


def _runs_for(with_sweeps: bool) -> Any:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        if os.sep in incomplete or incomplete.startswith("."):
            return [CompletionItem(incomplete, type="dir")]
        from launcher.rundir import find

        given = ctx.params.get(str(param.name)) or ()
        root = find.runs_root()
        names = [run.run_id for run in reversed(find.list_runs(root)) if not find.is_dry_run(run)]
        if with_sweeps:
            names += sorted(file.parent.name for file in root.glob("sweeps/[!.]*/sweep.json"))
        names = [name for name in names if name.isprintable()]  # another locale made the others: no shell can type them
        return _beginning(["last", *names] if names else [], unicodedata.normalize("NFC", incomplete), given)

    return complete


def _keys_for(keys: dict[str, Choices], separator: str) -> Any:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        key, equals, value = incomplete.partition("=")
        if not equals:
            items = _beginning(keys, incomplete)
            return [CompletionItem(f"{item.value}=", type="key", help=keys[item.value][0]) for item in items]
        before, comma, _ = value.rpartition(separator) if separator else ("", "", value)
        head = f"{key}={before}{comma}"
        return _beginning([head + choice for choice in keys.get(key, ())[1:]], incomplete)

    return complete


def _key_names(keys: dict[str, Choices]) -> Any:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return [CompletionItem(item.value, help=keys[item.value][0]) for item in _beginning(keys, incomplete)]

    return complete


def _beginning(words: Iterable[str], start: str, without: Iterable[str] = ()) -> list[CompletionItem[str]]:
    given = set(without) if not isinstance(without, str) else {without}
    return [CompletionItem(word) for word in words if word.startswith(start) and word not in given]


# ------------------------------------------------------------------------------------------------------ shells


class _Line(ShellComplete):
    """A shell that gives the line up to the cursor in COMP_LINE."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """Return whole words, where Click gives what stands after `--option=`."""
        option, equals, _ = incomplete.partition("=")
        found = super().get_completions(args, incomplete)
        for item in found if equals and option.startswith("--") else ():
            item.value = f"{option}={item.value}"
        return found

    def format_completion(self, item: CompletionItem[str]) -> str:
        return f"{item.type}\t{item.value}\t{' '.join((item.help or '').split())}"


class Bash(_Line):
    """bash takes `=` and `:` for the end of a word (COMP_WORDBREAKS) and replaces only what stands after them."""

    name = "bash"
    source_template = """\
_zlaunch_completion() {
    local response type value help
    COMPREPLY=()
    response=$(COMP_LINE="${COMP_LINE:0:COMP_POINT}" ZLAUNCH_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null) || return
    while IFS=$'\\t' read -r type value help; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            key) COMPREPLY+=("$value"); compopt -o nospace ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done <<< "$response"
}
complete -o nosort -F _zlaunch_completion %(prog_name)s 2>/dev/null ||
    complete -F _zlaunch_completion %(prog_name)s
"""

    def complete(self) -> str:
        args, incomplete = self.get_completion_args()
        breaks = [place for place, char in enumerate(incomplete) if char in os.environ.get("ZLAUNCH_WORDBREAKS", "=:")]
        head = incomplete[: breaks[-1] + 1] if breaks else ""
        lines = []
        for item in self.get_completions(args, incomplete):
            item.value = item.value.removeprefix(head)
            lines.append(self.format_completion(item))
        return "\n".join(lines)


class Zsh(_Line):
    name = "zsh"
    source_template = """\
#compdef %(prog_name)s
_zlaunch_completion() {
    local -a plain shown keys parts
    local line words_here="${(j: :)words[1,CURRENT]}"
    for line in "${(@f)$(COMP_LINE=$words_here %(complete_var)s=zsh_complete ${words[1]} 2>/dev/null)}"; do
        parts=("${(@s:\t:)line}")
        case ${parts[1]} in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            key) keys+=("${parts[2]}") ;;
            plain) plain+=("${parts[2]}")
                   shown+=("${parts[2]}${parts[3]:+  -- ${parts[3]}}") ;;
        esac
    done
    (( $#keys )) && compadd -Q -S '' -a keys
    (( $#plain )) && compadd -Q -V zlaunch -l -d shown -a plain
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }
compdef _zlaunch_completion %(prog_name)s
"""


class Fish(_Line):
    name = "fish"
    source_template = """\
function _zlaunch_completion
    set -l words (commandline -opc)
    for line in (COMP_LINE=(commandline -cp) %(complete_var)s=fish_complete $words[1] 2>/dev/null)
        set -l parts (string split -m 2 \\t -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case '*'
                printf '%%s\\t%%s\\n' $parts[2] "$parts[3]"
        end
    end
end
complete --no-files --keep-order --command %(prog_name)s --arguments '(_zlaunch_completion)'
"""


SHELLS: dict[str, type[_Line]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}


def script(shell: str) -> str:
    """What the shell must read once per session."""
    return SHELLS[shell](click.Command("zlaunch"), {}, "zlaunch", VARIABLE).source()


def main(cli: click.Command, instruction: str) -> int:
    """Answer a shell: print what may stand at the cursor. Returns the exit status."""
    for kind in SHELLS.values():
        add_completion_class(kind)
    found = table(cli)
    return shell_complete(command_of("zlaunch", found["command"], found["keys"]), {}, "zlaunch", VARIABLE, instruction)
