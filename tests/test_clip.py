"""CLIP: its loss from the formulas, its captions, its processes."""

import math
import multiprocessing

import pytest
import torch
from torch import distributed

from companion.clip import CLIP, CLIPConfig, symmetric_cross_entropy
from companion.nn.tokenizer import BytePairTokenizer
from companion.randomness import initialisation

CAPTIONS = ["a red three", "a blue seven", "a red three", "a green one"]
TOKENIZER = BytePairTokenizer.train(CAPTIONS, 270)
SMALL = {
    "channels": 3,
    "size": 8,
    "patch": 4,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "features": 8,
    "context": 12,
    "merges": TOKENIZER.flat,
    "known_words": tuple(sorted(TOKENIZER.known_words)),
}


def clip(**changes):
    with initialisation(0):
        return CLIP(CLIPConfig(**(SMALL | changes)))


def images(n=4):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def by_hand(scores, captions, same_captions):
    """One row and one column at a time."""
    total, n = 0.0, len(captions)
    for rows in (scores, scores.T):
        for i in range(n):
            alike = [j for j in range(n) if captions[j] == captions[i]]
            left_out = set(alike) - {i} if same_captions == "masked" else set()
            norm = math.log(sum(math.exp(rows[i, j]) for j in range(n) if j not in left_out))
            right = alike if same_captions == "positive" else [i]
            total += sum(norm - float(rows[i, j]) for j in right) / len(right)
    return total / (2 * n)


@pytest.mark.parametrize("same_captions", ["masked", "positive", "negative"])
def test_the_loss_is_the_symmetric_cross_entropy(same_captions):
    network, x = clip(same_captions=same_captions), images()
    found = network.loss(x, CAPTIONS)
    scores = (network.scores(x, CAPTIONS) / 0.07).detach().double()
    assert found["scale"].item() == pytest.approx(1 / 0.07)
    assert found["loss"].item() == pytest.approx(by_hand(scores, CAPTIONS, same_captions), rel=1e-5)
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_without_equal_captions_the_three_are_one():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    own = torch.eye(5, dtype=torch.bool)
    losses = [symmetric_cross_entropy(logits, own, s) for s in ("masked", "positive", "negative")]
    labels = torch.arange(5)
    entropy = torch.nn.functional.cross_entropy
    expected = (entropy(logits, labels) + entropy(logits.T, labels)) / 2
    torch.testing.assert_close(torch.stack(losses), expected.expand(3))


def test_the_scale_starts_at_the_papers_and_stops_at_100():
    network = clip()
    assert network.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        network.log_scale.fill_(7.0)
    found = network.loss(images(), CAPTIONS)
    assert found["scale"].item() == pytest.approx(100, rel=1e-5)
    assert network.log_scale.item() == pytest.approx(math.log(100))


def test_features_have_unit_length_and_do_not_depend_on_their_batch():
    network = clip().eval()
    texts, pictures = network.encode_text(CAPTIONS), network.encode_image(images())
    for features in (texts, pictures):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    # Longer captions beside it pad a caption, which must not show.
    for i, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(
            network.encode_text([caption])[0], texts[i], rtol=1e-4, atol=1e-5
        )
        alone = network.encode_image(images()[i : i + 1])[0]
        torch.testing.assert_close(alone, pictures[i], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts[0], texts[2])
    assert not torch.allclose(texts[0], texts[1])
    torch.testing.assert_close(network.scores(images(), CAPTIONS), pictures @ texts.T)


def test_every_token_and_every_pixel_has_its_say():
    network, x = clip().eval(), images(1).requires_grad_(True)
    weights = torch.arange(8.0)
    (network.encode_image(x) * weights).sum().backward()
    assert (x.grad != 0).all()
    base = network.encode_text(["a red three"])
    for other in ("a red thref", "b red three", "a rcd three", "three red a"):
        assert not torch.allclose(network.encode_text([other]), base, atol=1e-6)


def test_it_learns_which_is_which():
    network, x = clip(), images()
    captions = ["a red three", "a blue seven", "a green one", "a red one"]
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        network.loss(x, captions)["loss"].backward()
        optimiser.step()
    assert network.scores(x, captions).argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_prompts_that_cannot_be():
    network = clip()
    network.check_prompt("a red seven")
    for prompt in ("", "  \n"):
        with pytest.raises(ValueError, match="the caption is empty"):
            network.check_prompt(prompt)
    long = "a red three " * 9
    count = len(TOKENIZER.encode(long))
    with pytest.raises(ValueError, match=f"has {count} tokens, but this CLIP reads at most 11"):
        network.check_prompt(long)
    with pytest.raises(ValueError, match=r"unknown word 'bleu'\. Did you mean 'blue'"):
        network.check_prompt("a bleu one")
    with pytest.raises(ValueError, match="give a list of captions"):
        network.tokenize("a red three")
    with pytest.raises(ValueError, match="4 images need as many captions, got 2"):
        network.loss(images(), CAPTIONS[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, "size 8 is not a multiple of patch 3"),
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"merges": (1, 999)}, "only 256 tokens"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        CLIPConfig(**(SMALL | changes))


# --- Processes --------------------------------------------------------------------------------------------------------


def one_of_two(rank, path, same_captions):
    """One process: its half of the batch, and the gradients averaged as a trainer does."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2
    )
    network = clip(same_captions=same_captions)
    mine = slice(2 * rank, 2 * rank + 2)
    found = network.loss(images()[mine], CAPTIONS[mine])
    found["loss"].backward()
    for p in network.parameters():
        distributed.all_reduce(p.grad)
        p.grad /= 2
    if rank == 0:
        gradients = {name: p.grad for name, p in network.named_parameters()}
        torch.save({"loss": found["loss"].detach(), "gradients": gradients}, f"{path}/out.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("same_captions", ["masked", "positive"])
def test_two_processes_are_one(same_captions, tmp_path):
    """Negatives, and equal captions, of the other process included: the first and the third caption are equal."""
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=one_of_two, args=(r, tmp_path, same_captions)) for r in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    two = torch.load(tmp_path / "out.pt")
    network = clip(same_captions=same_captions)
    loss = network.loss(images(), CAPTIONS)["loss"]
    loss.backward()
    torch.testing.assert_close(two["loss"], loss.detach())
    for name, p in network.named_parameters():
        torch.testing.assert_close(two["gradients"][name], p.grad, rtol=1e-3, atol=1e-6)
