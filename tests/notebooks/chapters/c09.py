"""Chapter 09: what it defines, and what the library's versions are asked to compare with."""

import torch

import minidiff as md

OWN = {
    "away", "blinded", "both", "classifier", "draw", "forgetful", "gaussians", "judged", "log_class", "obeyed", "plane",
    "plane_eps", "several", "show_clouds", "spread_within", "three_of_four", "variety", "walked", "white", "words",
}  # fmt: skip

XT = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LINEAR = md.Schedule.linear()
LEVELS = [LINEAR.at(600), md.Schedule.flow(shift=3.0).at(700.0), LINEAR.at(torch.tensor([900, 400, 20]))]
CONDS = [{"y": torch.tensor(y, dtype=torch.float64)} for y in ([2.0, 0.5, -1.0], [1.0, 3.0, 0.2])]
UNCOND = {"y": torch.zeros(3, dtype=torch.float64)}


def net(xt, t, y):
    """A network whose answer depends on all it is given."""
    y, t = (v.view(-1, 1, 1, 1) for v in (y, t / 1000))
    return xt * (0.5 + y / 9) + y**2 * (1 + t)


def answers(denoisers, levels=LEVELS):
    """What denoisers say at several levels: x0 and eps of each."""
    return [tuple(denoise(XT, level)) for denoise in denoisers for level in levels]


def free(classifier_free):
    """At several scales, for networks of several kinds."""
    asked = [(scale, predicts) for scale in (0.0, 1.0, 3.0) for predicts in ("eps", "x0", "flow")]
    return answers(classifier_free(net, CONDS[0], UNCOND, scale, predicts) for scale, predicts in asked)


def sums(composed):
    """Of one and of two conditions, with weights of both signs."""
    return answers(composed(net, CONDS[: len(scales)], scales, UNCOND, predicts)
                   for scales in ([4.0], [3.0, 2.0], [4.0, -3.0]) for predicts in ("eps", "x0"))  # fmt: skip


STRONG, PLAIN = (md.classifier_free(net, CONDS[0], UNCOND, scale, "x0") for scale in (7.5, 1.0))


def tamed(rescaled):
    """With several shares, and the one that is taken by itself."""
    return answers([rescaled(STRONG, PLAIN), *(rescaled(STRONG, PLAIN, share) for share in (0.0, 0.4, 1.0))])


def switched(between):
    """In an interval with its end on a level, and in others."""
    bounds = [(0.0, 1.0), (0.0, float(LEVELS[1].sigma)), (float(LEVELS[1].sigma), 0.95), (0.1, 0.2)]
    return answers((between(STRONG, PLAIN, *pair) for pair in bounds), LEVELS[:2])


def steered(classifier_guided):
    """By a classifier that looks at t, without gradients switched on, as in a sampler."""
    def log_prob(x, t):
        return -((x - 1) ** 2).flatten(1).sum(1) / (2 + t / 500)

    with torch.no_grad():
        return answers(classifier_guided(md.GaussianDenoiser(0.2, 0.5), log_prob, scale) for scale in (0.0, 1.5))


INPUTS = {"classifier_free": free, "composed": sums, "rescaled": tamed, "between": switched, "classifier_guided": steered}
