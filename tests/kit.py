"""What only our own tests need; everything a user's test needs too is in :mod:`trimtab.testing`."""

from __future__ import annotations

from typing import Any


def stir(role: Any, *, seed: int = 0, scale: float = 0.1) -> Any:
    """Move all weights of a role away from where it starts, so that its adapter is not idle; returns the role."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.parameters().values():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return role


def moved(role: Any, start: Any) -> None:
    """Assert that training moved most weights of a role; without this, two runs that do nothing agree."""
    import torch

    now, before = role.state(), start.state()
    apart = torch.cat([(now[name] - before[name]).abs().flatten() for name in before])
    assert (apart > 0).float().mean() > 0.5


def same_weights(a: Any, b: Any, *, within: float = 1e-5) -> None:
    """Assert that two roles hold the same weights, up to rounding.

    Adam divides a gradient by its own size, so where that is next to nothing rounding decides; one weight in
    a thousand may be such a one. A wrong objective moves nearly all of them.
    """
    import torch

    ours, theirs = a.state(), b.state()
    assert ours.keys() == theirs.keys()
    apart = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])
    assert (apart > within).float().mean() <= 1e-3, f"{int((apart > within).sum())} of {len(apart)} weights differ"
