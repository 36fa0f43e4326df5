"""Muon against singular value decompositions, torch's, and AdamW."""

from __future__ import annotations

import pytest
import torch
from support.strategies import random_gradients
from torch import Tensor, nn

from optforge.baselines import BASELINES, AdamW, Muon
from optforge.primitives import ProgramOptimizer


def singular_values(update: Tensor) -> Tensor:
    return torch.linalg.svdvals(update.flatten(1))


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16), (6, 3, 2, 2)])
def test_muon_sets_singular_values_to_about_1_and_entries_to_about_a_fifth(shape: tuple[int, ...]) -> None:
    p, *gradients = random_gradients(shape, 5, seed=2)
    p = nn.Parameter(p)
    optimizer = Muon([p], lr=1.0, weight_decay=0.0)
    for g in gradients:
        p.grad, before = g, p.detach().clone()
        optimizer.step()
        update = before - p.detach()
        rows, columns = shape[0], update[0].numel()
        values = singular_values(update) / (0.2 * max(rows, columns) ** 0.5)
        assert bool(((values > 0.6) & (values < 1.25)).all())  # the band of Jordan et al. 2024
        assert 0.6 * 0.2 < float(update.square().mean().sqrt()) < 1.25 * 0.2  # Liu et al. 2025: as AdamW's


def test_muon_is_the_quintic_of_singular_values() -> None:
    """Against a singular value decomposition in float64, with the momentum and the scale written out."""
    start, *gradients = random_gradients((5, 7), 6, seed=4)
    p, m = nn.Parameter(start.clone()), torch.zeros_like(start)
    optimizer = Muon([p], lr=0.01, momentum=0.9, weight_decay=0.3)
    expected = start
    for g in gradients:
        m = 0.9 * m + g
        u, s, vt = torch.linalg.svd(g + 0.9 * m, full_matrices=False)
        s = s / (s.norm() + 1e-7)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        expected = (1 - 0.01 * 0.3) * expected - 0.01 * 0.2 * 7**0.5 * (u * s) @ vt
        p.grad = g
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-10)


def test_muon_is_that_of_torch_up_to_bfloat16() -> None:
    start, *gradients = random_gradients((16, 8), 5, seed=4, dtype=torch.float32)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    pair = [
        (ours, Muon([ours], lr=0.1)),
        (theirs, torch.optim.Muon([theirs], lr=0.1, adjust_lr_fn="match_rms_adamw")),
    ]
    for g in gradients:
        for p, optimizer in pair:
            p.grad = g.clone()
            optimizer.step()
    moved = (ours.detach() - start).norm()
    assert float((ours - theirs).detach().norm() / moved) < 0.02 < float(moved)  # eight bits, five multiplications


def test_the_row_names_what_goes_to_the_fallback() -> None:
    """Of names that are in use: embeddings, tables of positions and heads, and nothing of the layers between."""
    aside = [
        "embed.weight", "tok_embeddings.weight", "transformer.wte.weight", "transformer.wpe.weight", "position",
        "pos_embed", "bert.embeddings.word_embeddings.weight", "patch_embed.proj.weight", "head.weight",
        "lm_head.weight", "heads.head.weight", "classifier.weight", "output.weight", "module.output.weight",
        "decoder.embed_out.weight",
    ]  # fmt: skip
    trained = [
        "blocks.0.attention.qkv.weight", "transformer.h.3.attn.c_attn.weight", "heads.2.key.weight", "layers.1.weight",
        "bert.encoder.layer.0.attention.output.dense.weight", "model.layers.7.mlp.down_proj.weight", "header.weight",
        "layer4.1.conv2.weight", "members.0.weight",
    ]  # fmt: skip
    named = [(name, nn.Parameter(torch.ones(3, 2))) for name in (*aside, *trained)]
    for row in (row for row in BASELINES.values() if row.where is not None):
        optimizer = ProgramOptimizer([*named, ("norm.bias", nn.Parameter(torch.ones(2)))], row.program, where=row.where)
        routes = {route.name: route.which for route in optimizer.routes}
        assert [name for name, which in routes.items() if which == "program"] == trained, row.name
    assert {"muon", "muon-h", "adam-h"} <= {row.name for row in BASELINES.values() if row.where is not None}


def test_muon_leaves_vectors_and_whom_it_is_told_to_adamw() -> None:
    shapes = ((4, 3), (5,), (6, 2))
    runs = [random_gradients(shape, 6, seed) for seed, shape in enumerate(shapes)]
    options = {"lr": 0.01, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-3}
    muon, adamw, program = ([nn.Parameter(run[0].clone()) for run in runs] for _ in range(3))
    optimizers = [
        Muon([{"params": muon[:2]}, {"params": muon[2:], "use_muon": False}], **options),
        AdamW(adamw, **options),
        ProgramOptimizer(
            [{"params": program[:2]}, {"params": program[2:], "use_fallback": True}],
            BASELINES["muon"].program,
            lr=0.01, weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-3,
        ),
    ]  # fmt: skip
    for gradients in list(zip(*runs, strict=True))[1:]:
        for parameters, optimizer in zip((muon, adamw, program), optimizers, strict=True):
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g
            optimizer.step()
    torch.testing.assert_close(muon, program, rtol=0, atol=1e-12)
    torch.testing.assert_close(muon[1:], adamw[1:], rtol=0, atol=1e-12)
    assert float((muon[0] - adamw[0]).detach().abs().max()) > 1e-2
    assert set(optimizers[0].state[muon[0]]) == {"step", "m"}
