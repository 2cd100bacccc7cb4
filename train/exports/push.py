"""Send a run's adapter to the Hugging Face Hub, with its model card.

    python -m train.exports.push --run-dir RUN --to OWNER/NAME [--private] [--base-model OWNER/NAME]

The repository is made if it is not there. HF_TOKEN, or a login of `hf auth login`, must be allowed to write to it;
HF_ENDPOINT names another hub. Nothing but the files of `zlaunch export --to adapter` is sent, and no path of this
machine: a base model in a local directory must be named as others can load it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from train.answers.trained import find_adapter
from train.errors import UserError, first_line, guard_output, report
from train.exports.kinds import checkpoint_name, export
from train.model.base import HUB_ID

_NOT_SENT = ("export.json",)
"""Holds conversations of the check, for `export --verify`."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.exports.push")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--base-model")
    parser.add_argument("--checkpoint", type=checkpoint_name)
    options = parser.parse_args(arguments)
    guard_output()
    try:
        print(push(options))
    except Exception as error:
        return report(error, None, None, 0)
    return 0


def push(options: argparse.Namespace) -> str:
    """Export the adapter and upload it; returns the address. Raises UserError."""
    for key, name in (("--to", options.to), ("--base-model", options.base_model)):
        if name is not None and not HUB_ID.fullmatch(name):
            raise UserError(f"{key}: expected OWNER/NAME, got {name!r}", code="ZL-OPT-01")
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "adapter"
        export(options.run_dir, "adapter", out, lambda text: print(text, file=sys.stderr), options.checkpoint)
        base = find_adapter(options.run_dir.resolve(), options.checkpoint).base
        name_base(out, base, options.base_model)
        for name in _NOT_SENT:
            (out / name).unlink(missing_ok=True)
        return _upload(out, options.to, private=options.private)


def name_base(adapter: Path, base: str, named: str | None) -> None:
    """Name the base model in adapter_config.json and the card as others can load it. Raises UserError."""
    public = named or base
    if not HUB_ID.fullmatch(public) or (named is None and Path(public).exists()):
        raise UserError(
            f"the base model is a local directory, {Path(base).name}, which nobody else can load",
            "name it on the hub: --base-model OWNER/NAME",
            code="ZL-OPT-01",
        )
    file, card = adapter / "adapter_config.json", adapter / "README.md"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "base_model_name_or_path": public}, indent=2) + "\n", encoding="utf-8")
    if not card.is_file() or public == base:
        return
    text = card.read_text(encoding="utf-8")
    head, _, rest = text.removeprefix("---\n").partition("\n---")
    lines = [line for line in head.split("\n") if not line.startswith("base_model:")]
    shown = Path(base).name if not HUB_ID.fullmatch(base) else base
    rest = rest.replace(json.dumps(shown), json.dumps(public)).replace(f"serve {shown} ", f"serve {public} ")
    rest = rest.replace(f"adapter for {shown},", f"adapter for {public},").replace(f"| {shown} ", f"| {public} ")
    card.write_text("---\n" + "\n".join([f"base_model: {public}", *lines]) + "\n---" + rest, encoding="utf-8")


def _upload(place: Path, name: str, *, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi()
    try:
        repository = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=place, commit_message="Adapter trained with zlaunch")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise UserError(
            f"{name} cannot be written on the hub: {first_line(error)}",
            "set HF_TOKEN to a token that may write there, or call `hf auth login`",
            code="ZL-FILE-02",
        ) from error
    return str(repository)


if __name__ == "__main__":
    sys.exit(main())
