"""A small Vision Transformer and images, for the tests of several files."""

import torch

from subquad.models import VisionTransformer

SIDES, PATCH, GRID = (8, 12), 4, (2, 3)
POOLINGS = ("class", "mean", "sequence")


def small(**options):
    """Return a model of 6 patches in float64, its head and norms moved from where they start."""
    torch.manual_seed(0)
    sizes = {"image_size": SIDES, "patch_size": PATCH, "d_model": 16, "num_layers": 2}
    model = VisionTransformer(**{**sizes, "num_heads": 2, "d_ff": 24, "num_classes": 5, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def images(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
