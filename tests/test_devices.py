"""The default device is the accelerator where there is one."""

import pytest
import torch

from companion import default_device


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_default_device(monkeypatch, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert default_device().type == expected
