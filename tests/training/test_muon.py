"""Muon: its matrices by singular values, its Adam by torch's, its sizes by hand."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.testing import assert_close

from minidiff.training.muon import QUINTIC, Muon, orthogonalise


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 1000))
def test_directions_stay_and_lengths_become_nearly_one(m, n, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(m, n, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    bent = u.T @ orthogonalise(matrix) @ vh.T
    assert_close(bent, torch.diag(bent.diagonal()), atol=1e-6, rtol=0)
    large = s > 0.01 * s.norm()
    assert bent.diagonal()[large].min() > 0.6 and bent.diagonal().max() < 1.3


def test_it_is_newton_schulz():
    a, b, c = QUINTIC
    matrix = torch.randn(12, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    assert_close(orthogonalise(matrix), x)
    assert_close(orthogonalise(matrix.T), x.T)
    assert_close(orthogonalise(matrix.float()), x.float(), atol=1e-4, rtol=0)


def test_of_a_stack_each_matrix_is_taken_for_itself():
    torch.manual_seed(0)
    for shape in ((5, 12), (12, 5)):
        stack = torch.randn(3, *shape, dtype=torch.float64) * torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1)
        assert_close(orthogonalise(stack), torch.stack([orthogonalise(matrix) for matrix in stack]))


@given(st.integers(2, 64), st.integers(2, 200), st.integers(0, 1000))
def test_directions_bear_bfloat16(m, n, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(m, n)
    rough, exact = orthogonalise(matrix.bfloat16()), orthogonalise(matrix)
    assert rough.dtype == torch.bfloat16
    assert torch.linalg.matrix_norm(rough.float() - exact, 2) < 0.2 and torch.linalg.matrix_norm(rough.float(), 2) < 1.3


def test_no_direction_is_forgotten():
    weak = torch.diag(torch.tensor([1.0, 0.1, 0.02]))
    assert orthogonalise(weak).diagonal().min() > 0.6


def test_zero_gradients_move_nothing():
    assert orthogonalise(torch.zeros(3, 5)).eq(0).all()


def test_what_is_no_matrix_goes_adamws_way():
    torch.manual_seed(0)
    ours, theirs = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
    muon = Muon(ours, 0.01)
    adamw = torch.optim.AdamW(theirs.parameters(), 0.01, betas=(0.9, 0.99), weight_decay=0.01)
    for _ in range(5):
        x = torch.randn(4, 8, 3)
        for net, optimizer in ((ours, muon), (theirs, adamw)):
            optimizer.zero_grad()
            (net(x) ** 3).mean().backward()
            optimizer.step()
    assert_close(ours.weight, theirs.weight)
    assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("layer, x", [(nn.Linear(20, 30), torch.randn(5, 20)), (nn.Conv2d(6, 10, 3), torch.randn(2, 6, 8, 8))])
def test_steps_of_matrices_are_as_long_as_adams(layer, x):
    before = layer.weight.detach().clone()
    optimizer = Muon(layer, lr=0.1, weight_decay=0.0)
    (layer(x) ** 2).sum().backward()
    optimizer.step()
    size = (layer.weight - before).square().mean().sqrt() / 0.1
    full = min(layer.weight.flatten(1).shape)  # at most so many directions, of which a batch of 5 reaches 5
    assert 0.2 * 0.6 * (min(5, full) / full) ** 0.5 < size < 0.2 * 1.3


def test_a_matrix_moves_along_the_nesterov_mean_of_its_gradients_and_decays():
    torch.manual_seed(0)
    layer, gradients = nn.Linear(6, 4, bias=False), torch.randn(3, 4, 6)
    optimizer = Muon(layer, lr=0.1, momentum=0.9, weight_decay=0.5)
    weight, mean = layer.weight.detach().clone(), torch.zeros(4, 6)
    for grad in gradients:
        layer.weight.grad = grad.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * grad
        ahead = 0.1 * grad + 0.9 * mean
        weight = weight - 0.1 * 0.5 * weight - 0.1 * 0.2 * 6**0.5 * orthogonalise(ahead)
    assert_close(layer.weight.detach(), weight)


def test_layers_of_one_shape_step_as_each_would_alone():
    def layers():
        torch.manual_seed(0)
        made = [nn.Linear(6, 8), nn.Linear(6, 8), nn.Conv2d(2, 5, 3), nn.Linear(8, 6)]
        gradients = [[torch.randn(layer.weight.shape) for _ in range(3)] for layer in made]
        gradients[0][1] = None  # one that is left out for once
        return [*zip(made, gradients, strict=True)]

    def way(some, bf16=False):
        before = [layer.weight.detach().clone() for layer, _ in some]
        optimizer = Muon(nn.ModuleList(layer for layer, _ in some), 0.1, bf16=bf16)
        for step in range(3):
            for layer, gradients in some:
                layer.weight.grad = gradients[step]
            optimizer.step()
        return [layer.weight.detach() - start for (layer, _), start in zip(some, before, strict=True)]

    alone = [way([one])[0] for one in layers()]
    assert_close(way(layers()), alone)
    for rough, exact in zip(way(layers(), bf16=True), alone, strict=True):
        assert rough.dtype == torch.float32 and 0 < (rough - exact).norm() < 0.1 * exact.norm()


def test_a_weight_that_two_layers_share_moves_once():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert [len(group["params"]) for group in Muon(nn.Sequential(first, second), 0.1).param_groups] == [1]


def test_memory_layout_changes_no_step():
    nets = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = nn.Conv2d(4, 6, 3).to(memory_format=layout)
        optimizer = Muon(net, 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (net(torch.ones(1, 4, 5, 5)) ** 2).sum().backward()
            optimizer.step()
        nets.append(net)
    assert_close(nets[0].weight, nets[1].weight)


def test_it_takes_layers_and_leaves_frozen_weights_alone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 3), nn.LayerNorm(3))
    net[0].weight.requires_grad_(False)
    groups = Muon(net, 1e-3).param_groups
    assert [group["matrices"] for group in groups] == [False]
    net[0].weight.requires_grad_(True)
    first, second = Muon(net, 1e-3).param_groups
    assert [id(p) for p in first["params"]] == [id(net[0].weight)] and len(second["params"]) == 4
