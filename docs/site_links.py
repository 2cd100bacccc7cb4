"""A hook of mkdocs for links: the site itself switches the language, and has nothing of the repository but docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
SWITCH = re.compile(r" ?\[(?:English|中文)\]\([^)]+\)[.。]?")
"""The link to a page's other language; the site has its own switch."""
FOLDED = re.compile(r"(?<=[\u3001-\u303f\u4e00-\u9fff\uff01-\uff60])\n(?=[\u4e00-\u9fff\uff08])")
"""A line end within a Chinese sentence, which HTML would show as a blank."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrite links of a page to what mkdocs knows; a link out of docs/ becomes its text with the path."""
    folder = (DOCS / page.file.src_uri).parent

    def link(found: re.Match[str]) -> str:
        text, target, fragment = found[1], found[2], found[3] or ""
        file = (folder / target).resolve()
        if DOCS not in file.parents:
            path = str(file.relative_to(DOCS.parent))
            return f"`{path}`" if path.startswith(text.strip("`")) else f"{text} (`{path}`)"
        return f"[{text}]({target.replace('.zh-CN.md', '.md')}{fragment})"

    return FOLDED.sub("", LINK.sub(link, SWITCH.sub("", markdown)))
