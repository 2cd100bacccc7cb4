"""Find what commands say, and write it into the catalogues of launcher/machine/language: `make messages`.

help.po gets the help of all commands and options, as Click has it. errors.po gets the messages and hints of all errors
that a user can see, as the source has them: an f-string becomes a template with named fields. New texts get an empty
msgstr, texts that are gone are removed, and translations are kept. A test fails for a text without a translation.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from launcher.cli import COMMANDS, cli
from launcher.machine.language import catalogue
from launcher.rundir import timeline

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "launcher/machine/language"
BASES = {"ZlaunchError", "TrainError", "ConversionError", "Unreadable"}
"""Errors whose message a user reads; classes below them are found."""
CLICK = {"fail", "BadParameter", "UsageError", "ClickException"}
SHOWN = {"say"}
VIEW = "said"
"""The function whose first argument is a text of a view, with named fields; or a name, looked up in WORDS."""
WORDS = (
    "DRY RUN", "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "STOPPED", "LOST",
    "records", "tokens", "weights", "steps", "task", "metric", "before", "after", "value", "prompt", "expected",
    "loss", "accuracy", "exact_match", "macro_f1", "unreadable", "duplicates", "conflicts", "over-long",
    "sequences", "turns", "with loss", "measured on", "mean", "median", "max", "training", "evaluation", "tokenizer",
    "model", "adapter", "save", "start", "gradients", "optimizer", "activations", "logits", "buffers", "python",
    "environment", "gpus", "driver", "memory", "disk", "login", "host key", "network", "data", "engine", "clock",
    "checked",
)  # fmt: skip
"""Words that views show of data: states, units, columns, metrics."""
MOST = 24
"""Alternatives of one expression; of one with more, the parts that have several stay fields."""
FEWEST = 4
"""Letters of a template; one with fewer, such as `{run} is {state}`, would fit texts of others."""
CLICK_SAYS = (
    "No such command {command}.", "No such option {option}.", "No such option: {option}", "Missing argument {name}.",
    "Missing option {name}.", "Missing parameter: {name}", "Invalid value: {message:t}",
    "Invalid value for {name}: {message:t}", "{value} is not a valid {kind}.", "{value} is not a valid integer.",
    "{value} is not a valid float.", "{value} is not in the range {range}.", "{value} is not one of {choices}.",
    "Got unexpected extra argument ({arguments})", "Got unexpected extra arguments ({arguments})",
    "Option {option} requires an argument.", "Option {option} does not take a value.", "Missing command.",
    "Try '{command}' for help.", "Usage: {line}", "File {path} does not exist.", "Path {path} does not exist.",
    "Directory {path} does not exist.", "File {path} is a directory.",
)  # fmt: skip
"""What Click itself says of a command line."""


def help_texts() -> set[str]:
    """The help of every command and option, as the formatter of a help page gets it."""
    found = {"Usage:", "Options", "Commands", "Show this message and exit."}
    found |= {text for _, text in COMMANDS.values()}
    commands: list[click.Command] = [cli]
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        commands.append(command)
    while commands:
        command = commands.pop()
        if isinstance(command, click.Group) and command is not cli:
            commands += command.commands.values()
            found |= {one.get_short_help_str(200) for one in command.commands.values() if not one.hidden}
        found.add(inspect.cleandoc(command.help or "").partition("\f")[0])
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                found.add(inspect.cleandoc(option.help or ""))
                found |= {f"{group} options" for group in [getattr(option, "group", None)] if group}
    return {text for text in found if text.strip()}


class Module:
    """One source file: its functions, and the texts that its errors are made of."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions = {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)}
        self.constants = {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }

    def texts(self, names: set[str]) -> Iterator[str]:
        """Templates of the errors of these names that the file makes."""
        inside = {node: function for function in self.functions.values() for node in ast.walk(function)}
        for call in ast.walk(self.tree):
            if isinstance(call, ast.Call) and _name(call.func) in names:
                function = inside.get(call)
                given = [one for one in call.args if not isinstance(one, ast.Starred)]
                given += [keyword.value for keyword in call.keywords if keyword.arg == "hint"]
                for one in given:
                    for text in self.alternatives(one, function):
                        yield from _lines(text)

    def alternatives(self, node: ast.expr, function: ast.FunctionDef | None, depth: int = 3) -> list[str]:
        """The templates that an expression can become; a part that nothing is known of is a field."""
        if isinstance(node, ast.Constant):
            return [_escaped(node.value)] if isinstance(node.value, str) else []
        if isinstance(node, ast.IfExp):
            return [text for part in (node.body, node.orelse) for text in self.alternatives(part, function, depth)]
        if isinstance(node, ast.BoolOp):
            return [text for part in node.values for text in self.alternatives(part, function, depth)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined([node.left, node.right], function, depth)
        if isinstance(node, ast.JoinedStr):
            return self._joined(node.values, function, depth)
        if isinstance(node, ast.FormattedValue):
            found = self.alternatives(node.value, function, depth) if node.conversion == -1 else []
            return found or [field(node.value)]
        if depth and (found := self._resolved(node, function, depth - 1)):
            return found
        return [field(node)]

    def _joined(self, parts: list[ast.expr], function: ast.FunctionDef | None, depth: int) -> list[str]:
        each = [self.alternatives(part, function, depth) or [field(part)] for part in parts]
        if len(list(itertools.islice(itertools.product(*each), MOST + 1))) > MOST:
            each = [found if len(found) == 1 else [field(part)] for found, part in zip(each, parts, strict=True)]
        return ["".join(chosen) for chosen in itertools.product(*each)]

    def values(self, node: ast.expr, function: ast.FunctionDef | None) -> list[ast.expr]:
        """The expression itself, or for a name what it is assigned in this function or file."""
        if not isinstance(node, ast.Name):
            return [node]
        assigned = [
            one.value
            for one in ast.walk(function or ast.Module([], []))
            if (isinstance(one, ast.Assign) and any(_name(target) == node.id for target in one.targets))
            or (isinstance(one, ast.NamedExpr) and one.target.id == node.id)
        ]
        return assigned or [self.constants[node.id] for _ in [0] if node.id in self.constants]

    def _resolved(self, node: ast.expr, function: ast.FunctionDef | None, depth: int) -> list[str]:
        """What a name of this function or file stands for, or what a function of this file returns."""
        values: list[tuple[ast.expr, ast.FunctionDef | None]] = []
        if isinstance(node, ast.Name):
            values = [(one, function) for one in self.values(node, function)]
        elif isinstance(node, ast.Call) and (called := self.functions.get(_name(node.func))) and called is not function:
            returned = [one.value for one in ast.walk(called) if isinstance(one, ast.Return) and one.value is not None]
            values = [(one, called) for one in returned]
        found = [text for value, where in values for text in self.alternatives(value, where, depth)]
        return found if any(_has_words(text) for text in found) else []


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def field(node: ast.expr) -> str:
    return "{" + field_name(node) + "}"


def field_name(node: ast.expr) -> str:
    """A name for what an expression computes, as a person would call it."""
    if isinstance(node, ast.FormattedValue):
        return field_name(node.value)
    if isinstance(node, ast.Call):
        if _name(node.func) == "get" and node.args and isinstance(node.args[0], ast.Constant):
            return str(node.args[0].value).strip("_").lower()
        if _name(node.func) in ("join", "str", "repr", "len", "sorted", "map", "max", "min", "quote") and node.args:
            return field_name(node.args[-1])
        return _name(node.func).strip("_") or "value"
    if isinstance(node, ast.Subscript):
        index = node.slice
        return (
            index.value if isinstance(index, ast.Constant) and isinstance(index.value, str) else field_name(node.value)
        )
    if isinstance(node, ast.BinOp):
        return field_name(node.left)
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return field_name(node.generators[0].iter)
    return _name(node).strip("_").lower() or "value"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _has_words(text: str) -> bool:
    return bool(re.search("[A-Za-z]{2}", _own(text)))


def _own(text: str) -> str:
    """What a template says without its fields."""
    return re.sub(r"\{\w*(:t)?\}", "", text.replace("{{", "").replace("}}", ""))


def _lines(text: str) -> Iterator[str]:
    """The lines of a template that have words, each with fields of different names."""
    for line in (re.sub("^(note|warning|error): ", "", line) for line in text.split("\n")):
        if not _has_words(line) or line.isupper():
            continue
        count: dict[str, int] = {}
        parts = []
        for literal, name, _ in catalogue.pieces(line.strip()):
            parts.append(_escaped(literal))
            if name is not None:
                name = name or "value"
                count[name] = count.get(name, 0) + 1
                parts.append("{" + name + (str(count[name]) if count[name] > 1 else "") + "}")
        yield "".join(parts)


def error_names(trees: list[ast.Module]) -> set[str]:
    """The classes of errors that a user can see, and functions beside them that say something."""
    names = set(BASES)
    parents = {
        node.name: {_name(base) for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    while more := {name for name, bases in parents.items() if bases & names} - names:
        names |= more
    return names | CLICK | SHOWN


def error_texts() -> set[str]:
    """Templates of everything that errors say."""
    modules = [Module(path) for package in ("launcher", "train") for path in sorted((ROOT / package).rglob("*.py"))]
    names = error_names([module.tree for module in modules])
    found = {text for module in modules for text in module.texts(names)} | {
        re.sub(":t}", "}", text) for text in CLICK_SAYS
    }
    found = {text for text in found if "{" not in text or sum(map(str.isalpha, _own(text))) >= FEWEST}
    found |= event_texts()
    same = {re.sub(r"\{\w+\}", "{}", text): text for text in sorted(found, reverse=True)}
    return set(same.values())


def event_texts() -> set[str]:
    """What the views say of the events of a run."""
    module = Module(ROOT / "launcher/rundir/timeline.py")
    table = module.constants["_TEXTS"]
    assert isinstance(table, ast.Dict)
    found: list[str] = []
    for value in table.values:
        if isinstance(value, ast.Lambda):
            found += module.alternatives(value.body, None)
        else:
            returned = (one for one in ast.walk(module.functions[_name(value)]) if isinstance(one, ast.Return))
            function = module.functions[_name(value)]
            found += [text for one in returned if one.value for text in module.alternatives(one.value, function)]
    texts = {text for one in found for text in _lines(one)}
    return {text for text in texts if sum(map(str.isalpha, _own(text))) >= FEWEST}


def view_texts() -> set[str]:
    """What views say: the arguments of `said`, the phases of a run, and WORDS."""
    found = {*WORDS, *timeline.PHASES.values(), *timeline.OTHER_PHASES.values()}
    for path in sorted((ROOT / "launcher").rglob("*.py")):
        module = Module(path)
        for function in [None, *module.functions.values()]:
            for call in ast.walk(function or module.tree):
                if isinstance(call, ast.Call) and _name(call.func) == VIEW and call.args:
                    for value in module.values(call.args[0], function):
                        found |= set(_constants(value))
    return found


def _constants(node: ast.expr) -> Iterator[str]:
    """The texts that an expression chooses from; what is computed is a name of WORDS."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _constants(node.body)
        yield from _constants(node.orelse)


def write(name: str, texts: set[str]) -> None:
    """Bring a catalogue up to date with the texts of the source."""
    file = FOLDER / f"{name}.po"
    known = catalogue.read(file) if file.exists() else {}
    head = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n"Language: zh_CN\\n"\n'
    entries = [f"msgid {_quoted(text)}\nmsgstr {_quoted(known.get(text, ''))}\n" for text in sorted(texts)]
    file.write_text("\n".join([head, *entries]), encoding="utf-8")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


AREAS = {"help": help_texts, "errors": error_texts, "views": view_texts}

if __name__ == "__main__":
    for area, texts in AREAS.items():
        write(area, texts())
        missing = [text for text, chinese in catalogue.read(FOLDER / f"{area}.po").items() if not chinese]
        print(f"{area}.po: {len(missing)} texts without a translation", file=sys.stderr)
