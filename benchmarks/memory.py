"""Memory of one training step at the published sizes, computed from shapes: nothing of a network is run or loaded.

    python benchmarks/memory.py

Every network has its published architecture on the meta device, so this takes a minute on any machine. The reward is
HPSv2.1 (CLIP ViT-H/14), everything in bf16, the paper's gradient through one step. How the computation compares with an
allocator's own record is measured here too, on the tiny world and on small pipelines of every family.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from full_size import FULL, Full, full_size, hpsv21, said
from measure import peak_bytes, publish, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from agreement import CLIPS
from pipelines import BUILDERS, build

from reneg_core.backends import wrap
from reneg_core.model import Conditioning
from reneg_core.rewards.hpsv2 import HPSv21
from reneg_core.sampling import Sampling, Size, State
from reneg_core.training.footprint import CARDS, Footprint, Step, fits, footprint
from reneg_core.training.objective import Way

GIB = 2**30


def published(kind: Full, reward: HPSv21) -> dict[str, Any]:
    model = full_size(kind)
    one = said(kind, model)
    sampling = Sampling(steps=30, size=kind.size).at_scale(7.5)

    def of(recompute: bool) -> Callable[[int], Footprint]:
        return lambda rows: footprint(model, reward, Step(rows, sampling, 1, recompute), one)

    plain, light = of(False), of(True)
    first = {"plain": plain(1), "recomputed": light(1)}
    return {
        "label": kind.label,
        "pixels": kind.pixels,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "gib": {way: {**asdict(found), "peak": found.peak} for way, found in first.items()},
        "fits": {"plain": fits(plain), "recomputed": fits(light)},
    }


def compared(name: str) -> dict[str, float]:
    """Bytes of a gradient point, computed and by the allocator's record, on a small pipeline in fp32."""
    model = wrap(build(name), name)
    sampling = Sampling(steps=4, size=Size(64, 64, CLIPS[name].frames if name in CLIPS else None)).at_scale(3)
    sigmas, noise, one = model.sigmas(sampling), model.noise([0, 1], sampling.size), model.encode([""])
    found = {}
    for recompute in (False, True):
        model.checkpointing(recompute)

        def point() -> None:
            leaves = Conditioning(*(None if p is None else p.clone() for p in (one.tokens, one.mask, one.pooled)))
            wanted = [p.requires_grad_() for p in (leaves.tokens, leaves.pooled) if p is not None]
            way, state = Way(model, sigmas, one, leaves, sampling), State(noise, 3)
            images = model.decode(way.recorded(state, way.positive_x0(state)))
            torch.autograd.grad(images, wanted, torch.ones_like(images))

        computed = footprint(model, None, Step(2, sampling, 1, recompute)).gradient
        found["recomputed" if recompute else "plain"] = computed / peak_bytes(point)
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    reward = hpsv21()
    models = {name: published(kind, reward) for name, kind in FULL.items()}
    rows = [
        (
            one["label"], one["pixels"], *(f"{one['gib'][way]['peak'] / GIB:.1f}" for way in one["gib"]),
            *(f"{one['fits']['plain'][card]} / {one['fits']['recomputed'][card]}" for card in CARDS),
        )
        for one in models.values()
    ]  # fmt: skip
    print(table(rows, ("model", "pixels", "GiB", "recomputed", *(f"{card} GB" for card in CARDS))))
    against = {name: compared(name) for name in BUILDERS}
    shares = [(name, *(f"{value:.2f}" for value in one.values())) for name, one in against.items()]
    print(table(shares, ("computed / recorded", "plain", "recomputed")))
    judge = {"label": "HPSv2.1", "bytes": sum(p.nbytes for p in reward.parameters())}
    publish("memory", {"models": models, "reward": judge, "against": against})


if __name__ == "__main__":
    main()
