"""Batch normalisation in one process is PyTorch's; that of two equals that of one in tests/training/test_launch.py."""

import torch
from torch import nn

from companion.nn.collective import processes
from companion.nn.normalisation import BatchNorm2d


def test_one_process_equals_pytorch():
    torch.manual_seed(0)
    ours, theirs = BatchNorm2d(5), nn.BatchNorm2d(5)
    assert processes() == 1
    for _ in range(3):
        x = torch.randn(4, 5, 3, 3) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_the_shared_form_equals_the_plain_one(monkeypatch):
    """With one process that believes it is several: the arithmetic, its gradients and the running statistics."""
    from companion.nn import collective, normalisation

    torch.manual_seed(0)
    ours, theirs = BatchNorm2d(5).double(), nn.BatchNorm2d(5).double()
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight.copy_(torch.arange(1.0, 6))
            layer.bias.copy_(torch.arange(5.0))
    x = torch.randn(4, 5, 3, 3, dtype=torch.float64) * 2 + 1
    a, b = x.clone().requires_grad_(), torch.cat([x, x]).requires_grad_()
    probe = torch.randn_like(x)
    # Two processes with the same images have sums twice as large, and the gradients of a sum arrive from both.
    for module in (collective, normalisation):
        monkeypatch.setattr(module, "processes", lambda: 2)
    monkeypatch.setattr(collective.distributed, "all_reduce", lambda t: t.mul_(2))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    (ours(a) * probe).sum().backward()
    (theirs(b) * torch.cat([probe, probe])).sum().backward()
    torch.testing.assert_close(a.grad, b.grad[:4])
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
