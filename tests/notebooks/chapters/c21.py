"""Chapter 21: what it defines, and what the library's versions are asked to compare with."""

import torch

OWN = {
    "Small", "coverage", "drawings", "exam", "gap", "held_out_gaps", "known_scenes", "measure", "naive", "real_set", "ring",
    "seen", "upset", "verdicts", "waves", "wilson",
}  # fmt: skip  # wilson, gap, held_out_gaps are the library's, and compared in the chapter: they live below the rooms

_RANDOM = torch.Generator().manual_seed(0)
A, B = torch.randn(200, 6, generator=_RANDOM), torch.randn(150, 6, generator=_RANDOM) @ torch.diag(torch.arange(1.0, 7)) + 1
INPUTS = {name: [(A, B), (B, A), (A[:4], B), (A[:, :1], B[:, :1])] for name in ("frechet_distance", "kernel_distance")}
