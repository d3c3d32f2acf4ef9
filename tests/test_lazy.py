"""What may be imported without waiting for torch."""

import subprocess
import sys

import pytest

import companion
from companion import checkpoints


@pytest.mark.parametrize(
    "code",
    [
        "import companion; companion.__version__",
        "import companion; dir(companion)",
        "from companion.checkpoints import card; card.load_card('gan').value('FID')",
        "from companion.checkpoints import Card, CheckpointError, checkpoint_names; checkpoint_names()",
        "import companion.measurement, companion.checks, companion.files, companion.errors",
    ],
)
def test_cards_and_versions_need_no_torch(code):
    check = "import sys; heavy = {'torch', 'numpy', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True)


@pytest.mark.parametrize("module", [companion, checkpoints])
def test_every_name_of_a_lazy_face_is_there(module):
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing
    assert companion.load_checkpoint is checkpoints.load_checkpoint
