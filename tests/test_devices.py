"""Devices that are there, and a precision that suits them."""

import warnings

import pytest
import torch

from companion import default_device, devices
from companion.devices import check_device, computes_bfloat16, resolve_precision, warn_if_slow


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_default_device(monkeypatch, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert default_device().type == expected


@pytest.mark.parametrize("device", ["cpu", "meta", torch.device("cpu")])
def test_devices_that_every_machine_has(device):
    assert check_device(device) == torch.device(device)


def test_cuda_devices_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cuda", "cuda:0", "cuda:1"):
        assert check_device(name) == torch.device(name)
    with pytest.raises(
        ValueError, match="device 'cuda:2' was asked for, but this machine has 2 CUDA"
    ):
        check_device("cuda:2")


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"'cuda' was asked .* has no CUDA device\. Use 'cpu'\."):
        check_device("cuda")
    with pytest.raises(
        ValueError, match="'xpu' was asked for, but this machine has none of the kind"
    ):
        check_device("xpu")
    with pytest.raises(ValueError, match=r"unknown device 'cudda'\. Known: cpu, cuda"):
        check_device("cudda")


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", "32-true"),
        ("auto", "cuda", "bf16-mixed"),
        ("auto", "cuda:1", "bf16-mixed"),
        ("auto", "mps", "32-true"),
        ("32-true", "cuda", "32-true"),
        ("bf16-mixed", "cpu", "bf16-mixed"),
    ],
)
def test_what_a_precision_means(precision, device, expected):
    assert resolve_precision(precision, device) == expected
    assert resolve_precision(precision, torch.device(device)) == expected


@pytest.fixture
def processor(monkeypatch):
    """Puts another processor in the place of this one."""

    def put(*abilities, capability="AVX512", machine="x86_64"):
        monkeypatch.setattr(devices, "_processor", lambda: frozenset(abilities))
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(devices.platform, "machine", lambda: machine)

    return put


PROCESSORS = [
    # abilities, what PyTorch uses of them, machine, whether bfloat16 is fast
    (("avx2", "avx512_f"), "AVX512", "x86_64", False),
    (("avx2",), "AVX2", "AMD64", False),
    (("avx2", "avx512_bf16"), "AVX512", "x86_64", True),
    (("avx2", "amx_bf16"), "AVX512", "x86_64", True),
    (("avx2", "avx512_bf16"), "AVX2", "x86_64", False),  # as ATEN_CPU_CAPABILITY=avx2 has it
    (("neon", "bf16"), "DEFAULT", "aarch64", True),
    (("neon",), "DEFAULT", "aarch64", False),
    ((), "DEFAULT", "riscv64", True),  # not known, so nothing is said
]


@pytest.mark.parametrize(("abilities", "capability", "machine", "fast"), PROCESSORS)
def test_slow_bfloat16_is_warned_of(processor, abilities, capability, machine, fast):
    processor(*abilities, capability=capability, machine=machine)
    assert computes_bfloat16() == fast
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for precision in ("auto", "32-true"):
            warn_if_slow(precision, "cpu")
        warn_if_slow("bf16-mixed", "cuda")
        assert not caught
        warn_if_slow("bf16-mixed", "cpu")
    assert len(caught) == (not fast)
    if caught:
        message = str(caught[0].message)
        assert "about 10 × slower" in message
        assert "--precision 32-true" in message


CPUINFO = """processor\t: 0
model name\t: A processor
{key}\t\t: fpu {flags}

processor\t: 1
{key}\t\t: fpu {flags}
"""


@pytest.mark.parametrize(
    ("key", "flags", "fast"),
    [
        ("flags", "avx2 avx512_bf16", True),
        ("flags", "avx2", False),
        ("Features", "asimd bf16", True),
    ],
)
def test_an_older_pytorch_asks_the_system(monkeypatch, tmp_path, key, flags, fast):
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO.format(key=key, flags=flags))
    monkeypatch.setattr(torch.cpu, "get_capabilities", None, raising=False)
    monkeypatch.setattr(devices, "Path", lambda name: path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    devices._processor.cache_clear()
    try:
        assert devices._processor() == {"fpu", *flags.split()}
        assert computes_bfloat16() == fast
        path.unlink()
        devices._processor.cache_clear()
        assert devices._processor() == frozenset()
    finally:
        devices._processor.cache_clear()
