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
    it towards 1, with nothing but matrix products. All factors are polynomials in A, so they are gathered in a
    product P of the small size (m, m), and X itself is touched twice.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T, rounds).T
    a, b, c = QUINTIC
    x = matrix / (matrix.norm() + 1e-7)  # no singular value above 1
    gram = x @ x.T
    identity = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(rounds):
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    return product @ x


class Muon(torch.optim.Optimizer):
    """Muon for the weights of linear and convolutional layers of `net`, Adam for the rest: biases, norms, embeddings.

    A convolution (out, in, k, k) is the matrix (out, in * k * k). Steps are scaled to the size of Adam's (Liu et al. 2025,
    section 2.2), so that one learning rate serves both. Weights decay as in AdamW (Loshchilov & Hutter 2019).
    """

    def __init__(self, net: nn.Module, lr: float, momentum=0.95, betas=(0.9, 0.99), weight_decay=0.01):
        matrices = [m.weight for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.requires_grad]
        known = {id(p) for p in matrices}
        rest = [p for p in net.parameters() if id(p) not in known and p.requires_grad]
        groups = [{"params": matrices, "matrices": True}, {"params": rest, "matrices": False}]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            direction = self._muon if group["matrices"] else self._adam
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(direction(p.grad, self.state[p], group), alpha=-group["lr"])

    def _muon(self, grad: Tensor, state: dict, group: dict) -> Tensor:
        mean = state.setdefault("mean", torch.zeros_like(grad))
        mean.lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(mean, group["momentum"]).flatten(1)  # Nesterov: where the mean is going
        return (orthogonalise(ahead) * 0.2 * max(ahead.shape) ** 0.5).view_as(grad)  # root mean square 0.2, as Adam's

    def _adam(self, grad: Tensor, state: dict, group: dict) -> Tensor:
        mean, square = (state.setdefault(name, torch.zeros_like(grad)) for name in ("mean", "square"))
        steps = state.setdefault("steps", torch.zeros(()))
        steps += 1
        b1, b2 = group["betas"]
        mean.lerp_(grad, 1 - b1)
        square.lerp_(grad**2, 1 - b2)
        return (mean / (1 - b1**steps)) / ((square / (1 - b2**steps)).sqrt() + 1e-8)  # Kingma & Ba 2015, algorithm 1
