"""Every block and every network against diffusers and transformers, random weights in every parameter."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
from pairs import PAIRS  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_answers_are_theirs(name, dtype, bound):
    parameters, ours, theirs = PAIRS[name](dtype)
    assert ours.shape == theirs.shape
    assert ours.dtype == dtype
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max()
