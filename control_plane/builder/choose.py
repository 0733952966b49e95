"""Says of each tried recipe whether it is taken, and why, in words for a person; pure."""

from dataclasses import dataclass

from control_plane.builder.job import Tried
from control_plane.domain.blueprint import Blueprint, shortfalls, size_shortfalls


@dataclass(frozen=True)
class Judged:
    """One tried recipe and what became of it."""

    tried: Tried
    accepted: bool
    why: str


def judge(
    blueprint: Blueprint, tried: Tried, *, extra_bytes: int, source_bytes: int, waiver: str = ""
) -> Judged:
    """Judge one recipe by the blueprint's floors and limits.

    Args:
        blueprint: whose floors and limits.
        tried: the recipe's numbers.
        extra_bytes: of the bundle's other files; the disk must hold them too.
        source_bytes: of the source's graph, to compare with.
        waiver: who overlooks the quality floors, and why; never the disk, nor a broken file.
    """
    if tried.error:
        return Judged(tried, accepted=False, why=f"could not be built: {tried.error}")
    size = tried.bytes + extra_bytes
    missed = shortfalls(blueprint, tried.quality, size)
    too_large = size_shortfalls(blueprint, size)
    found = "; ".join(map(str, missed))
    if missed and (not waiver or too_large):
        return Judged(tried, accepted=False, why=found)
    if missed:
        return Judged(tried, accepted=True, why=f"floors waived by {waiver}; below: {found}")
    return Judged(tried, accepted=True, why=_praise(tried, source_bytes))


def _praise(tried: Tried, source_bytes: int) -> str:
    quality = tried.quality
    return (
        f"the best recipe within every bound: {tried.bytes / source_bytes:.2f} of the source's "
        f"size, KL {quality['kl_mean']:.4f} nats, top-1 agreement "
        f"{quality['top1_agreement']:.3f}, perplexity x{quality['perplexity_ratio']:.4f}"
    )


def binding_constraint(judged: list[Judged]) -> str:
    """Say why nothing was taken: each recipe with the bounds it broke."""
    lines = [f"{one.tried.recipe}: {one.why}" for one in judged]
    return "no recipe is good enough: " + " | ".join(lines)
