"""How long nbval waits for a cell: six times what the cell took when it was recorded, so that a busy machine is no
failure and a cell that hangs is.
"""

import nbformat
import pytest
from notebooks import time_limit

# A cell's outputs are compared after it has run, and a kernel is started before the first.
_AROUND = 120


def _limit(item: pytest.Item) -> float | None:
    """Returns the seconds of a notebook's cell, and nothing for another test."""
    number = getattr(item, "cell_num", None)
    notebook = getattr(item.parent, "nb", None)
    if number is None or not isinstance(notebook, nbformat.NotebookNode):
        return None
    recorded = notebook.metadata.get("companion", {}).get("cell_seconds", [])
    return time_limit(recorded[number] if number < len(recorded) else None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (limit := _limit(item)) is not None:
            item.add_marker(pytest.mark.timeout(limit + _AROUND))


def pytest_runtest_setup(item: pytest.Item) -> None:
    # nbval has one time-out for all; it reads it before each cell, and cells of one process run one after the other.
    if (limit := _limit(item)) is not None:
        item.config.option.nbval_cell_timeout = limit
