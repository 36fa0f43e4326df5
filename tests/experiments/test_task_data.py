"""Data that are generated or come with a package, and the models that learn from them, got in another way."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from optforge.experiments.tasks import TASKS, data
from optforge.experiments.tasks.mnist1d import generate, mnist1d
from optforge.experiments.tasks.models import GRU, ConvNet
from optforge.experiments.tasks.objectives import Quadratic, Rosenbrock, normal_noise
from optforge.experiments.tasks.transformers import GPT, SIZES, Attention, ViT
from optforge.search.training.task import initial_model


def test_mnist1d_is_the_published_set():
    """Figures of what the authors' package, mnist1d 0.0.2, makes."""
    x, y = generate()
    assert x.shape == (5000, 40) and y[:12].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1, 6, 9]
    assert x[0, :4] == pytest.approx([-0.33200567, -0.47191037, -0.77869708, -1.00974083], abs=1e-8)
    assert x[-1, -3:] == pytest.approx([0.65987565, 0.87773435, 1.19315184], abs=1e-8)
    assert x[:, 7].sum() == pytest.approx(-159.55877220479465) and (x**3).sum() == pytest.approx(-13126.103828802175)
    splits = mnist1d()
    assert [len(s) for s in splits] == [3200, 800, 1000]
    assert torch.equal(splits.test.targets, torch.from_numpy(y[4000:]))


def test_breast_cancer_is_standardised_and_split_without_overlap():
    splits = data.breast_cancer()
    assert sum(len(s) for s in splits) == 569
    assert len(torch.cat([s.inputs for s in splits]).unique(dim=0)) == 569
    assert splits.train.inputs.mean(0).abs().max() < 1e-5
    shares = [float(s.targets.double().mean()) for s in splits]
    assert max(shares) - min(shares) < 0.01


def test_autoencoders_have_their_inputs_as_targets():
    for split in data.digits_autoencoder():
        inputs, targets = split.batch(torch.arange(5))
        assert torch.equal(inputs, targets)


def test_copy_asks_for_what_was_shown_after_the_delay():
    splits = data.copy()
    assert [len(s) for s in splits] == [4096, 512, 512]
    shown, waiting, answer = splits.valid.inputs.split([data.COPY_LENGTH, data.COPY_DELAY, data.COPY_LENGTH], dim=1)
    assert torch.equal(shown, splits.valid.targets) and shown.max() == data.SYMBOLS - 1
    assert (waiting == data.BLANK).all() and (answer[:, 0] == data.GO).all() and (answer[:, 1:] == data.BLANK).all()


def test_gru_is_that_of_torch():
    torch.manual_seed(0)
    mine, other = GRU(10, 6, 4).double(), nn.GRU(10, 6, batch_first=True).double()
    with torch.no_grad():
        other.weight_ih_l0.copy_(mine.read.weight.T)
        other.bias_ih_l0.zero_()
        other.weight_hh_l0.copy_(mine.hidden.weight)
        other.bias_hh_l0.copy_(mine.hidden.bias)
    classes = torch.randint(10, (3, 7))
    states, _ = other(nn.functional.one_hot(classes, 10).double())
    torch.testing.assert_close(mine(classes), mine.head(states[:, -4:]))


def test_convolutions_take_flat_and_square_images():
    model = ConvNet((1, 8), (16, 32), 10)
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(images), model(images.flatten(1))) and model(images).shape == (3, 10)


def test_quadratic_has_its_curvatures_and_its_noise():
    h = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    model = Quadratic(h, rotated=True).double()
    zero = torch.zeros(1, 3, dtype=torch.float64)

    def value(x):
        return torch.func.functional_call(model, {"point": x}, (zero,)).sum()

    hessian = torch.func.jacrev(torch.func.jacrev(value))(model.point.detach())
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian).flip(0), h, rtol=1e-5, atol=1e-7)
    plain = Quadratic(h, rotated=False).double()
    noise = torch.randn(20_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # the gradient at x is h x + √h ξ
    gradients = h * plain.point.detach() + h.sqrt() * noise

    def loss(x, e):
        return torch.func.functional_call(plain, {"point": x}, (e[None],)).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(plain.point.detach(), noise)
    torch.testing.assert_close(each, gradients)
    torch.testing.assert_close(each.T.cov(), torch.diag(h), rtol=0.05, atol=0.02)


def test_noise_vanishes_in_the_mean_of_the_training_split_and_where_it_is_measured():
    splits = normal_noise(50, 64)
    assert splits.train.inputs.mean(0).abs().max() < 1e-7 and splits.train.inputs.std() > 0.9
    assert not splits.valid.inputs.any() and not splits.test.inputs.any()


def test_rosenbrock_by_hand():
    model = Rosenbrock(4)
    x = [0.5, -1.0, 2.0, 1.5]
    model.point.data = torch.tensor(x)
    by_hand = sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in pairwise(x)) / 3
    assert model(torch.zeros(5, 1)).tolist() == pytest.approx([by_hand] * 5)
    model.point.data = torch.ones(4)
    assert model(torch.zeros(1, 1)).item() == 0


def meta(make):
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def test_sizes_without_allocating():
    small = SIZES["small"]
    sizes = {
        name: meta(lambda s=s: GPT(s.vocabulary, s.context, s.width, s.heads, s.depth, tied=True))
        for name, s in SIZES.items()
    }
    assert sizes["small"] == 124_439_808  # GPT-2's smallest
    assert list(sizes.values()) == sorted(sizes.values())
    # ViT-B/16 has 86,567,656, of which 2 × 768 are the class token and its position
    assert meta(lambda: ViT((3, 224), 16, 1000, small.width, small.heads, small.depth)) == 86_567_656 - 2 * 768


def test_tied_gpt_learns_one_matrix_for_both_ends():
    torch.manual_seed(0)
    model = GPT(11, 8, 8, 2, 1, tied=True)
    assert "head.weight" not in dict(model.named_parameters())
    untied = GPT(11, 8, 8, 2, 1)
    untied.load_state_dict({**model.state_dict(), "head.weight": model.embed.weight.detach()})
    text = torch.randint(11, (2, 8))
    torch.testing.assert_close(model(text), untied(text))


def test_vision_transformers_cut_images_into_patches():
    """Of patch k, all pixels and no others reach the embedding of patch k."""
    model = ViT((2, 8), 4, 3, width=8, heads=2, depth=1)
    seen = []
    model.embed.register_forward_hook(lambda m, inputs, output: seen.append(inputs[0]))
    images = torch.arange(2.0 * 8 * 8).reshape(1, 2, 8, 8)
    assert model(images).shape == (1, 3)
    blocks = [images[0, :, y : y + 4, x : x + 4].flatten() for y in (0, 4) for x in (0, 4)]
    assert torch.equal(seen[0][0], torch.stack(blocks))
    with pytest.raises(ValueError, match="patches of 3"):
        ViT((2, 8), 3, 3)


def test_attention_without_a_context_sees_everything():
    torch.manual_seed(0)
    attention = Attention(8, 2, None).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    q, k, v = (p.unflatten(-1, (2, 4)).transpose(1, 2) for p in attention.qkv(x).chunk(3, -1))
    expected = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(attention(x), attention.out(expected))


@pytest.mark.parametrize("name", ["digits-conv", "digits-autoencoder", "breast-cancer", "mnist1d", "copy", "charlm"])
def test_summaries_say_the_number_of_parameters(name):
    count = sum(p.numel() for p in initial_model(TASKS[name], 0).parameters())
    assert f"{count:,} parameters" in TASKS[name].summary and math.isfinite(count)
