"""How many of the peers' own examples are imported whole: python -m tests.bench.importing DIR

DIR holds checkouts of LLaMA-Factory, axolotl and ms-swift under these names. Counted are their examples of supervised
LoRA and QLoRA on text; an example is whole if the job says all that it says of the training (docs/import.md). Every
other one is listed with what is lost, or why it is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from launcher.errors import ZlaunchError
from launcher.job.importing import imported_file, recognize
from launcher.job.importing.draft import Draft

MEDIA = re.compile(r"vl\b|-vl-|_vl|vision|llava|omni|audio|video|pixtral|paligemma|ocr|emu3", re.IGNORECASE)


def llamafactory(root: Path) -> Iterator[Path]:
    """SFT with LoRA in examples/, apart from images and from lists of answers without training."""
    for file in sorted((root / "examples").rglob("*.yaml")):
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or tree.get("stage") != "sft" or tree.get("finetuning_type") != "lora":
            continue
        if tree.get("do_train") and not MEDIA.search(f"{tree.get('template')} {tree.get('model_name_or_path')}"):
            yield file


def axolotl(root: Path) -> Iterator[Path]:
    """LoRA and QLoRA in examples/, apart from preferences, rewards, images and audio."""
    for file in sorted((root / "examples").rglob("*.y*ml")):
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or tree.get("adapter") not in ("lora", "qlora") or "base_model" not in tree:
            continue
        other = ("rl", "processor_type", "is_multimodal", "reward_model", "process_reward_model", "pretraining_dataset",
                 "diffusion", "num_labels")  # fmt: skip
        if not any(tree.get(word) for word in other):
            yield file


def swift(root: Path) -> Iterator[Path]:
    """`swift sft` with LoRA in the shell scripts of examples/, apart from images and from classification."""
    for file in sorted((root / "examples").rglob("*.sh")):
        text = re.sub(r"(?m)^\s*#.*", "", file.read_text(encoding="utf-8"))
        if not re.search(r"swift sft|swift/cli/sft\.py", text) or "megatron" in text:
            continue
        kind = re.search(r"--(?:tuner_type|train_type)[ =]+(\w+)", text)
        other = re.search(r"--(?:task_type|freeze_vit|freeze_llm|rlhf_type)|MAX_PIXELS", text)
        if (kind is None or kind[1] == "lora") and not other and not MEDIA.search(f"{file} {text}"):
            yield file


PEERS: dict[str, Callable[[Path], Iterator[Path]]] = {
    "LLaMA-Factory": llamafactory, "axolotl": axolotl, "ms-swift": swift,
}  # fmt: skip


def imported(file: Path, root: Path) -> tuple[Draft | None, str]:
    """(the draft, why it is not whole); an empty reason: it is whole, and a valid job."""
    try:
        draft = recognize.read(str(file), gpus=None, here=root)
        imported_file.text(draft, file.name)
    except ZlaunchError as error:
        return None, f"refused: {' '.join(str(error).split())}"
    return draft, "; ".join(f"lost: {' '.join(str(note).split())}" for note in draft.lost)


def main(folder: Path) -> None:
    print("| examples | text LoRA SFT | whole | with losses | refused |\n|---|---|---|---|---|")
    details: list[str] = []
    for name, files in PEERS.items():
        root = folder / name
        found = {file: imported(file, root) for file in files(root)}
        whole = sum(1 for _, reason in found.values() if not reason)
        refused = sum(1 for draft, _ in found.values() if draft is None)
        print(f"| {name} | {len(found)} | {whole} | {len(found) - whole - refused} | {refused} |")
        details += [f"{file.relative_to(root)}: {reason}" for file, (_, reason) in found.items() if reason]
    print("", *details, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
