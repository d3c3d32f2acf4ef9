"""The codebook's speed beside that of vector-quantize-pytorch, as a ratio within one run."""

import time

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from companion.randomness import derive
from companion.vq_vae import VectorQuantizer


@pytest.mark.timeout(600)
@pytest.mark.parametrize("training", [True, False])
def test_8192_codes_of_512_numbers(training, capsys):
    generator = derive(0)
    z = torch.randn(16, 1024, 512, generator=generator)
    codes = torch.randn(8192, 512, generator=generator)
    ours = VectorQuantizer(8192, 512, start="uniform", restart=0).train(training)
    ours.codebook.copy_(codes)
    ours.sums.copy_(codes)
    theirs = VectorQuantize(dim=512, codebook_size=8192, decay=0.99).train(training)
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    with torch.no_grad():
        for _ in range(3):  # in turns, so that whatever else the machine does meets both
            for name, forward in (("ours", ours), ("theirs", theirs)):
                start = time.process_time()
                forward(z)
                spent[name].append(time.process_time() - start)
    ratio = min(spent["ours"]) / min(spent["theirs"])
    with capsys.disabled():
        print(f"\n{'training' if training else 'evaluation'}: {ratio:.2f} of the time")
    assert ratio <= 0.4
