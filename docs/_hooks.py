"""For mkdocs: README.md is the home page; links to source files, which the site lacks, become plain text."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def on_files(files, config):
    """README.md as index.md."""
    from mkdocs.structure.files import File

    text = (ROOT / "README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Keep a link's words where it leads out of docs/."""

    def shown(match):
        words, target = match.groups()
        path = target.split("#")[0]
        inside = target.startswith(("https://", "#")) or files.get_file_from_path(_within(page, path))
        return match[0] if inside else words

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", shown, markdown)


def _within(page, path):
    docs = ROOT / "docs"
    at = ((docs / page.file.src_uri).parent / path).resolve()
    return str(at.relative_to(docs)) if at.is_relative_to(docs) else ""
