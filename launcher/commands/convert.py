"""`zlaunch convert SRC DST`: a ChatGLM or Baichuan checkpoint for plain transformers."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.backends.ssh.requirements import FOR_CONVERSION
from launcher.machine import facts, output, process, trainer
from launcher.machine.language import spoken


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
def convert(source: Path, target: Path) -> int:
    """Convert a ChatGLM or Baichuan checkpoint from its original layout to one that plain transformers reads."""
    facts.check_python(facts.this_python(), FOR_CONVERSION)
    argv = [facts.this_python(), "-m", "train.convert", str(source.absolute()), str(target.absolute())]
    env = trainer.environment(encoding=output.child_encoding())
    with spoken.heard() as stderr:
        return process.passthrough(argv, env=env, cwd=trainer.NEUTRAL, stderr=stderr)
