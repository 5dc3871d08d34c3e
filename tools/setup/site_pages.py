"""Hook of mkdocs: bring to the site what its pages name outside `docs/`.

README.md, CONTRIBUTING.md and other texts become pages where they are, without a copy; a program or
config that a page links to becomes a file of the site. Links are written as on GitHub, and are
turned here to where their target lies on the site. A link to nothing is left as it is: `mkdocs
build --strict` stops at it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'CONTRIBUTING.md',
    'CHANGELOG.md': 'CHANGELOG.md',
    'weights/miniature-generator/README.md': 'weights/miniature-generator/README.md',
}
"""Pages that lie outside `docs/`: where each is in the repository and on the site."""
LINK = re.compile(r'\]\((?![a-z]+:|#)([^)\s#]+)')


def site_place(path: str) -> str:
    """Return where a file of the repository lies on the site."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix('docs/') if path.startswith('docs/') else f'source/{path}'


def repository_place(page: str) -> str:
    """Return where a page of the site lies in the repository."""
    return {site: path for path, site in PAGES.items()}.get(page, f'docs/{page}')


def target(link: str, page: str) -> str | None:
    """Return the file of the repository that a link of a page names, if it is one."""
    path = os.path.normpath(PurePosixPath(page).parent / link)
    return path if not path.startswith('..') and (ROOT / path).is_file() else None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside `docs/`, and the files outside it that pages link to."""
    from mkdocs.structure.files import File

    for path, site in PAGES.items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / path)))
    for file in list(files.documentation_pages()):
        page = repository_place(file.src_uri)
        for link in LINK.findall((ROOT / page).read_text(encoding='utf-8')):
            path = target(link, page)
            if path is not None and files.get_file_from_path(site_place(path)) is None:
                files.append(
                    File.generated(config, site_place(path), abs_src_path=str(ROOT / path))
                )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn a page's links from the repository's places to those of the site."""
    here = page.file.src_uri

    def turn(match: re.Match[str]) -> str:
        path = target(match[1], repository_place(here))
        if path is None:
            return match[0]
        return f']({os.path.relpath(site_place(path), PurePosixPath(here).parent)}'

    return LINK.sub(turn, markdown)
