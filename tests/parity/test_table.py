"""The table of `python -m minidiff parity`: it prints what it found, and cannot pass what differs."""

import pytest
import torch

from minidiff.__main__ import main

pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
import table  # noqa: E402

pytestmark = pytest.mark.parity


def pair(error):
    return lambda dtype: (1234567, torch.ones(5, dtype=dtype) + error, torch.ones(5, dtype=dtype))


@pytest.mark.parametrize("error, status", [(0, 0), (1e-3, 2)])
def test_the_command_fails_if_anything_differs(monkeypatch, capsys, error, status):
    monkeypatch.setattr(table, "PAIRS", {"first": pair(0), "second": pair(error)})
    monkeypatch.setattr(table, "PICTURES", {})
    assert main(["parity"]) == status
    printed = capsys.readouterr().out
    assert "second" in printed
    assert "1,234,567" in printed
    assert f"{error:.1e}" in printed


def test_without_a_checkout_it_says_what_it_needs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("minidiff.commands.parity.TESTS", tmp_path / "nowhere")
    assert main(["parity"]) == 2
    assert "run it in a checkout" in capsys.readouterr().err
