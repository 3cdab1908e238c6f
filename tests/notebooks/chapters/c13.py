"""Chapter 13: what it defines, and what the library's versions are asked to compare with."""

import torch

# to_latents and to_images are minidiff.pipelines.latents', and compared with it in the chapter, on a trained network.
OWN = {"as_rows", "decoded", "fit", "grey_levels", "listen", "means", "resized", "to_images", "to_latents"}


def gaussian(Gaussian):
    """Three posteriors, wild ones among them: what is kept, what is drawn, what it costs, and the gradients of both."""
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 3, 4, 5, 5, generator=generator)
    logvar[0, 0, 0, :2] = torch.tensor([-100.0, 60.0])
    mean.requires_grad_()
    logvar.requires_grad_()
    posterior = Gaussian(mean, logvar)
    drawn, kl = posterior.sample(torch.Generator().manual_seed(1)), posterior.kl()
    torch.manual_seed(2)
    again = Gaussian(mean.detach().double(), logvar.detach().double()).sample()
    refused = 0
    try:
        Gaussian(mean, logvar[:1])
    except ValueError:
        refused = 1
    slopes = torch.autograd.grad((drawn.sin() + kl[:, None, None, None] / 100)[1:].sum(), (mean, logvar))
    return [posterior.mean, posterior.logvar, posterior.std, drawn, kl, again.float(), *slopes, torch.tensor(refused)]


INPUTS = {"Gaussian": gaussian}
