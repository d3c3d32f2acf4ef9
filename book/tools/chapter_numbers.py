"""A Sphinx extension: a chapter's number is the one in its file's name.

The theme counts chapters as they come, so that while chapters 6 and 7 are still to be written, `08-autoencoder`
would be shown as 6, and all cross-references with it.
"""

import re
from pathlib import PurePosixPath
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles


def chapter_number(docname: str) -> int | None:
    """Returns 8 for "book/08-autoencoder", and None for a page that is no chapter."""
    found = re.match(r"(\d\d)-", PurePosixPath(docname).name)
    return int(found[1]) if found else None


def renumber(env: BuildEnvironment) -> None:
    """Puts the file's number in the place of the counted one, in the contents, the titles and the sections."""
    for docname, sections in env.toc_secnumbers.items():
        number = chapter_number(docname)
        if number is None:
            continue
        for anchor, counted in sections.items():
            if counted:
                sections[anchor] = (number, *counted[1:])
        for reference in env.tocs[docname].findall(nodes.reference):
            if reference.get("secnumber"):
                reference["secnumber"] = [number, *reference["secnumber"][1:]]
        for title in (env.titles[docname], env.longtitles[docname]):
            if title.get("secnumber"):
                title["secnumber"] = [number, *title["secnumber"][1:]]


def setup(app: Sphinx) -> dict[str, Any]:
    """Lets every count of the sections be followed by the renumbering."""
    count = TocTreeCollectorWithStyles.assign_section_numbers

    def assign_section_numbers(
        self: TocTreeCollectorWithStyles, env: BuildEnvironment
    ) -> list[str]:
        changed = count(self, env)
        renumber(env)
        return changed

    TocTreeCollectorWithStyles.assign_section_numbers = assign_section_numbers
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
