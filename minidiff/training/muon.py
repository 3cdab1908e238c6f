"""Muon: a step in which every direction of a weight matrix counts alike (Jordan et al. 2024).

Adam scales each number of a gradient by its own history. Muon looks at a gradient as a matrix G = U S V^T, and steps along
U V^T: the same directions, all at length 1. Otherwise a few strong directions, such as "everything brighter", take nearly
all of each step, and the many weak ones, which hold the detail, wait. In equal time it halves
our distance to real images (docs/results.md).
"""

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # a, b, c of Jordan et al.: steep at 0, and about 1 from there to 1


def orthogonalise(matrix: Tensor, rounds: int = 5) -> Tensor:
    """U V^T of the matrix U S V^T, (m, n), nearly: singular values above 0.01 |S| end between 0.6 and 1.3, smaller ones grow.

    Newton-Schulz: X <- (a + b A + c A^2) X with A = X X^T bends every singular value s to a s + b s^3 + c s^5, which drives
    it towards 1, with nothing but matrix products. Of a stack (..., m, n) each matrix is taken for itself.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalise(matrix.mT, rounds).mT
    a, b, c = QUINTIC
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1
    identity = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    for _ in range(rounds):
        gram = x @ x.mT
        x = (a * identity + b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon for the weights of linear and convolutional layers of `net`, Adam for the rest: biases, norms, embeddings.

    A convolution (out, in, k, k) is the matrix (out, in * k * k). Steps are scaled to the size of Adam's (Liu et al. 2025,
    section 2.2), so that one learning rate serves both. Weights decay as in AdamW (Loshchilov & Hutter 2019). bf16: find
    directions in bfloat16, as Jordan et al. do; three digits are enough for a direction, and twice as fast where bf16 is.
    """

    def __init__(self, net: nn.Module, lr: float, momentum=0.95, betas=(0.9, 0.99), weight_decay=0.01, bf16: bool = False):
        alike = {}  # matrices of one shape, which are taken together
        for m in net.modules():
            if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.requires_grad:
                alike.setdefault(m.weight.shape, {})[id(m.weight)] = m.weight  # once, though two layers may share it
        known = {key for stack in alike.values() for key in stack}
        rest = [p for p in net.parameters() if id(p) not in known and p.requires_grad]
        groups = [{"params": [*stack.values()], "matrices": True} for stack in alike.values()]
        groups += [{"params": rest, "matrices": False}] if rest else []
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "bf16": bf16}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            directions = self._muon(moved, group) if group["matrices"] and moved else (self._adam(p, group) for p in moved)
            for p, direction in zip(moved, directions, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction.view_as(p), alpha=-group["lr"])

    def _muon(self, params: list[Tensor], group: dict) -> Tensor:
        ahead = torch.stack([self._ahead(p, group["momentum"]).flatten(1) for p in params])
        found = orthogonalise(ahead.bfloat16() if group["bf16"] else ahead).to(ahead.dtype)
        return found * 0.2 * max(ahead.shape[1:]) ** 0.5  # root mean square 0.2, as Adam's

    def _ahead(self, p: Tensor, momentum: float) -> Tensor:
        mean = self.state[p].setdefault("mean", torch.zeros_like(p))
        mean.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(mean, momentum)  # Nesterov: where the mean is going

    def _adam(self, p: Tensor, group: dict) -> Tensor:
        state, (b1, b2) = self.state[p], group["betas"]
        mean, square = (state.setdefault(name, torch.zeros_like(p)) for name in ("mean", "square"))
        steps = state.setdefault("steps", torch.zeros(()))
        steps += 1
        mean.lerp_(p.grad, 1 - b1)
        square.lerp_(p.grad**2, 1 - b2)
        return (mean / (1 - b1**steps)) / ((square / (1 - b2**steps)).sqrt() + 1e-8)  # Kingma & Ba 2015, algorithm 1
