"""`companion sample` with a prompt: what is drawn, and what is said of prompts that cannot be."""

import numpy as np
import pytest
import torch

from companion import cli
from companion.checkpoints import Card, save_checkpoint
from companion.cli import main
from companion.clip import CLIP
from companion.data import to_uint8
from companion.data.scenes import scenes
from companion.randomness import initialisation
from companion.recipes import RECIPES, load_assembled, make_checkpoint
from companion.recipes.dalle import DALLERecipe
from companion.vae import VAE, VAEConfig
from companion.vq_vae import VQVAE, VQVAEConfig

PROMPT = "a red three left of a blue seven"


@pytest.fixture(scope="module")
def dalle(tmp_path_factory):
    """A folder with a text-to-image model that has taken one step, and what it builds on."""
    folder = tmp_path_factory.mktemp("dalle")
    config = RECIPES["clip"].replace(width=8, features=4).config(scenes("train", 100))
    with initialisation(0):
        judge = CLIP(config)
        tokens = VQVAE(VQVAEConfig(channels=3, size=32, width=4, codes=20))
    for name, network in (("judge", judge), ("tokens", tokens)):
        save_checkpoint(network, Card(name=name), folder)
    recipe = RECIPES["dalle"].replace(
        data="scenes",
        tokenizer=str(folder / "tokens.safetensors"),
        judge=str(folder / "judge.safetensors"),
        steps=1,
        batch_size=4,
        width=8,
        heads=2,
        layers=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        for number in ("SCENES", "TEST_SCENES"):
            patch.setattr(f"companion.data.catalogue.{number}", 300)
        patch.setattr(DALLERecipe, "evaluate", lambda *_: [])
        make_checkpoint(recipe, "dalle", folder / "run", progress=False, samples=10)
    return folder / "run" / "dalle.safetensors"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    with initialisation(0):
        save_checkpoint(VAE(VAEConfig(width=2, latent_dim=3)), Card(name="vae"), folder)
    return folder / "vae.safetensors"


@pytest.mark.parametrize("more", [[], ["--rerank", "3"], ["--temperature", "0.5", "--top-k", "4"]])
def test_a_prompt_is_drawn(dalle, tmp_path, more):
    out = tmp_path / "a.npy"
    assert (
        main(["sample", str(dalle), "--prompt", PROMPT, "--n", "3", "--out", str(out), *more]) == 0
    )
    names = {"--rerank": "rerank", "--temperature": "temperature", "--top-k": "top_k"}
    choices = {
        names[k]: float(v) if "." in v else int(v)
        for k, v in zip(more[::2], more[1::2], strict=True)
    }
    expected = load_assembled(dalle).draw([PROMPT] * 3, seed=0, **choices)
    assert torch.equal(torch.from_numpy(np.load(out)), to_uint8(expected))


def test_without_a_prompt_the_model_draws_that_too(dalle, tmp_path):
    out = tmp_path / "a.npy"
    words = ["sample", str(dalle), "--n", "2", "--top-p", "0.9", "--seed", "4", "--out", str(out)]
    assert main(words) == 0
    expected = load_assembled(dalle).sample(2, seed=4, top_p=0.9)
    assert torch.equal(torch.from_numpy(np.load(out)), to_uint8(expected))


@pytest.mark.parametrize(
    ("of", "words", "message"),
    [
        ("dalle", ["--prompt", "a red thre left of a blue seven"], "Did you mean 'three'"),
        ("dalle", ["--prompt", " "], "the prompt is empty"),
        ("dalle", ["--prompt", PROMPT * 9], "this model reads at most 16"),
        ("dalle", ["--prompt", PROMPT, "--top-p", "1.5"], "top_p must be"),
        ("dalle", ["--prompt", PROMPT, "--temperature", "-1"], "temperature must be"),
        ("dalle", ["--prompt", PROMPT, "--rerank", "0"], "--rerank must be at least 1, got 0"),
        ("dalle", ["--rerank", "4"], "give --prompt too"),
        ("vae", ["--prompt", PROMPT], "'vae' does not read prompts"),
        ("vae", ["--temperature", "0.5"], "so --temperature means nothing to it"),
        ("vae", ["--top-k", "3"], "so --top-k means nothing to it"),
    ],
)
def test_what_cannot_be_drawn_is_said_at_once(of, words, message, request, capsys, tmp_path):
    out = tmp_path / "a.png"
    checkpoint = request.getfixturevalue(of)
    status = main(["sample", str(checkpoint), *words, "--out", str(out)])
    text = capsys.readouterr().err
    assert status == cli.WRONG_USAGE, text
    assert message in text
    assert len(text.splitlines()) <= 3
    assert not out.exists()
