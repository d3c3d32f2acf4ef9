"""Drawing with buffers beside drawing with whole passes, as a ratio within one run."""

import time

import torch

from companion.pixelcnn import PixelCNN
from companion.randomness import initialisation

IMAGES = 64
PASSES = 3  # whole passes cost the same for every pixel: so a few stand for all 784


def test_buffers_draw_a_hundred_times_faster():
    with initialisation(0):
        model = PixelCNN().eval()
    model.sample(2, seed=1)
    start = time.process_time()
    x = model.sample(IMAGES, seed=0)
    quick = time.process_time() - start
    with torch.inference_mode():
        model(x[:2])
        start = time.process_time()
        for _ in range(PASSES):
            model(x)
        slow = (time.process_time() - start) * x[0].numel() / PASSES
    print(f"with buffers {quick:.2f} s, with whole passes {slow:.0f} s: {slow / quick:.0f} times")
    assert slow > 100 * quick
