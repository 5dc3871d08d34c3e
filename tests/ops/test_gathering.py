"""Gathering rows over processes; in two processes: tests/pytorch and tests/models."""

import torch

from freeatm_mm.ops import gather_rows
from freeatm_mm.ops import gathering as module


def test_gather_on_one_process_is_the_rows_themselves():
    rows = torch.randn(3, 2)
    assert gather_rows(rows, [3]) is rows


def test_gathering_leaves_the_gradients_of_others_alone(monkeypatch):
    """A sum hands one and the same gradient to both of its terms; here two processes add up."""
    monkeypatch.setattr(module, '_all_gather', lambda rows: [rows, torch.zeros_like(rows)])
    monkeypatch.setattr(module, '_all_reduce', lambda gradient: gradient.mul_(2))
    rows, other = torch.randn(3, 2, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    term = other * 1  # made first, so that its turn comes after the gathering's
    ((module.gather_rows_with_gradient(rows, [3, 3]) + term) ** 2).sum().backward()
    expected = 2 * (torch.cat([rows, torch.zeros(3, 2)]) + other)
    assert torch.equal(other.grad, expected)
    assert torch.equal(rows.grad, 2 * expected[:3])
