import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn.functional import avg_pool2d, interpolate

from minidiff.nets.tiling import sliced, tiled
from minidiff.nets.vae import VAE


def enlarge(scale):
    return lambda x: interpolate(x, scale_factor=float(scale), mode="nearest")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(0, 15), st.sampled_from([1, 2, 3, 8]))
def test_blending_leaves_what_is_local_as_it_was(height, width, tile, overlap, scale):
    """Weights that add up to one: a function of the pixel alone gives, in tiles, what it gives whole."""
    overlap = min(overlap, tile - 1)
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    torch.testing.assert_close(tiled(enlarge(scale), x, tile, overlap, scale), enlarge(scale)(x), rtol=1e-5, atol=1e-6)
    big = interpolate(x, scale_factor=float(scale), mode="bilinear")
    wanted = avg_pool2d(big, scale)
    small = tiled(lambda piece: avg_pool2d(piece, scale), big, tile * scale, overlap * scale, 1 / scale)
    torch.testing.assert_close(small, wanted, rtol=1e-5, atol=1e-6)


def test_the_blend_is_a_straight_line():
    """Tiles that answer 0, 1, 2, ...: flat, a straight line over the overlap, flat."""
    count = iter(range(9))
    answer = tiled(lambda piece: torch.full_like(piece, next(count)), torch.zeros(1, 1, 1, 18, dtype=torch.float64), 8, 3, 1)
    wanted = [0] * 5 + [0.25, 0.5, 0.75] + [1] * 2 + [1.25, 1.5, 1.75] + [2] * 5
    torch.testing.assert_close(answer.flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_tiles_are_spread_evenly():
    """20 pixels by tiles of 8: four are needed, and none of them lies almost upon the one before."""
    starts = []
    tiled(lambda piece: starts.append(int(piece[0, 0, 0, 0])) or piece, torch.arange(20.0).view(1, 1, 1, 20), 8, 3, 1)
    assert starts == [0, 4, 8, 12]


def test_an_image_within_one_tile_is_the_function_itself(generator):
    x = torch.randn(2, 4, 9, 12, generator=generator)
    vae = small()
    torch.testing.assert_close(tiled(vae.decode, x, 12, 4, 4), vae.decode(x), rtol=0, atol=0)


def small():
    torch.manual_seed(0)
    vae = VAE(channels=(16, 16, 16), layers=1, groups=4)
    for parameter in vae.parameters():  # what starts at zero would hide everything before it
        parameter.data = 0.1 * torch.randn_like(parameter) + (parameter.data if parameter.ndim == 1 else 0)
    return vae.eval()


def test_tiles_of_a_vae_are_close_and_show_no_seams():
    """What is left of the error is spread out: without overlap it jumps where tiles meet, with it nowhere."""
    vae, z = small(), torch.randn(1, 4, 40, 56, generator=torch.Generator().manual_seed(1))
    whole = vae.decode(z).detach()

    def error_and_jump(overlap):
        error = tiled(vae.decode, z, 24, overlap, 4) - whole
        steps = error.diff(dim=3).abs().mean((0, 1, 2))  # from column to column
        return (error.square().mean().sqrt() / whole.std()).item(), (steps.max() / steps.median()).item()

    hard, soft = error_and_jump(0), error_and_jump(12)
    assert soft[0] < 0.15 < 0.2 < hard[0]
    assert soft[1] < 2.5 < 4 < hard[1]


def test_no_piece_is_larger_than_a_tile_and_no_graph_is_kept(generator):
    vae, image, seen = small(), torch.randn(2, 3, 40, 72, generator=generator), []

    def watched(piece):
        seen.append(piece.shape)
        made = vae.moments(piece)
        assert not made.requires_grad
        return made

    assert tiled(watched, image, 32, 8, 1 / 4).shape == (2, 8, 10, 18)
    assert set(seen) == {(2, 3, 32, 32)}  # full ones to the very edge: a strip of two pixels would have odd statistics
    assert len(seen) == 2 * 3
    seen.clear()
    torch.testing.assert_close(sliced(watched, image), vae.moments(image), rtol=1e-5, atol=1e-6)
    assert seen == [(1, 3, 40, 72)] * 2


def test_bad_input_is_one_clear_error():
    x = torch.zeros(1, 1, 20, 20)
    for arguments, message in [
        ((enlarge(2), x, 8, 8, 2), "tiles of 8 cannot overlap by 8"),
        ((enlarge(2), x, 8, -1, 2), "overlap by -1"),
        ((lambda piece: avg_pool2d(piece, 8), x, 16, 8, 1 / 8), "height = 20 does not divide by 8, .* take 24"),
        ((lambda piece: avg_pool2d(piece, 4), x, 16, 6, 1 / 4), "overlap = 6 does not divide by 4"),
        ((enlarge(2), x, 8, 2, 8), "a tile of 8x8 became 16x16, which is not a scale of 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiled(*arguments)
