"""The tiny world's card: how good its parts are, what guidance alone does, and every flaw under every negative.

    python benchmarks/world.py      (about ten minutes on two slow cores)

`claim.py` must have left demo embeddings' settings in place (`rival.py` before it): this script learns the demo's
negative once more, with the demo's seed. Writes benchmarks/results/world.json and reneg_core/tiny/samples.png.
"""

from pathlib import Path
from typing import Any

import torch
from flaws import seen_through_the_autoencoder, shares, train
from lab import MEASURE, encoded, judge, learn, means, recipe, test_pairs, world
from measure import publish

from reneg_core.evaluation import Keep, Mode, evaluate, grid
from reneg_core.evaluation.modes import exaggerate
from reneg_core.sampling import Sampling
from reneg_core.tiny import measure, prompts
from reneg_core.tiny.pictures import Pictures, draw
from reneg_core.tiny.rivals import SCALES, rivals
from reneg_core.tiny.train_reward import worn
from reneg_core.tiny.world import FLAWS, spoil

SAMPLES = Path(__file__).resolve().parent.parent / "reneg_core" / "tiny" / "samples.png"
GRIDS = [Sampling(solver, steps, spacing) for solver, steps, spacing in (
    ("ddim", 30, "model"), ("euler", 10, "trailing"), ("euler", 20, "trailing"), ("euler", 40, "trailing"),
    ("dpmpp_2m", 10, "trailing"), ("dpmpp_2m", 20, "trailing"), ("dpmpp_2m", 40, "trailing"),
    ("dpmpp_2m", 10, "karras"), ("dpmpp_2m", 20, "karras"), ("dpmpp_2m", 40, "karras"),
)]  # fmt: skip


def drawn() -> dict[str, float]:
    """Measure of drawn pictures of the test combinations: flawless, careless ones among them, and reconstructions."""
    generator = torch.Generator().manual_seed(11)
    pictures = draw(512, "test", generator)
    texts = [prompts.PLAIN_TEMPLATES[0].format(**prompts.words(tuple(row))) for row in pictures.combinations.tolist()]
    clean = Pictures(pictures.clean, pictures.clean, torch.zeros_like(pictures.strength), pictures.combinations)
    found = {
        "flawless": pictures.clean,
        "flawless, through the autoencoder": seen_through_the_autoencoder(clean),
        "as the world has them": pictures.images,
        "careless ones": pictures.images[(pictures.strength > 0).any(1)],
    }
    kept = {"careless ones": [t for t, s in zip(texts, (pictures.strength > 0).any(1).tolist(), strict=True) if s]}
    return {name: round(measure(images, kept.get(name, texts)).mean().item(), 4) for name, images in found.items()}


@torch.no_grad()
def costs() -> dict[str, dict[str, float]]:
    """What every flaw at full strength takes off a flawless picture, by measure and by reward."""
    generator, reward = torch.Generator().manual_seed(12), world()[1]
    pictures = draw(256, "test", generator)
    texts = [prompts.PLAIN_TEMPLATES[0].format(**prompts.words(tuple(row))) for row in pictures.combinations.tolist()]
    spoilt = {}
    for column, name in enumerate(FLAWS):
        strength = torch.zeros(256, len(FLAWS))
        strength[:, column] = 1
        spoilt[name] = spoil(pictures.clean, strength, generator)
    for column, name in enumerate(("warping", "softness", "grain")):
        spoilt[name] = worn(pictures.clean, torch.eye(3)[column].expand(256, 3), generator)
    judges = {"measure": lambda images: measure(images, texts), "reward": lambda images: reward.score(images, texts)}
    return {
        name: {
            judge: round((score(pictures.clean) - score(images)).mean().item(), 3) for judge, score in judges.items()
        }
        for name, images in spoilt.items()
    }


def grids() -> dict[str, float]:
    """Mean measure of the empty prompt on 144 test pairs, sampler by sampler, at its best guidance scale."""
    scale, null = rivals()["none"].guidance_scale, Mode(encoded([""]))
    chosen = {sampling.describe(): sampling.at_scale(scale) for sampling in GRIDS}
    modes = {str(i): Mode(null.negative, "", sampling) for i, sampling in enumerate(chosen.values())}
    found = judge(test_pairs(2, seed=6), modes, recipe().sampling)
    return {
        sampling.describe(): round(found.mean(MEASURE, str(i)).value, 4) for i, sampling in enumerate(chosen.values())
    }


def scales(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean measure of every negative at every guidance scale on 144 test pairs."""
    sampling = recipe().sampling
    modes = {f"{n}@{s:g}": Mode(row, "", sampling.at_scale(s)) for n, row in rows.items() for s in SCALES}
    found = means(judge(test_pairs(2, seed=6), modes, sampling))
    return {name: {f"{s:g}": found[f"{name}@{s:g}"][MEASURE] for s in SCALES} for name in rows}


def main() -> None:
    """Measure everything, write the card's figures and its picture."""
    config, found = recipe(), rivals()
    embedding, _ = learn(config)
    null = encoded([""])
    rows = {
        name: exaggerate(null, encoded([rival.text]), rival.strength) if rival.text else null
        for name, rival in found.items()
    } | {"embedding": embedding.conditioning()}
    scale = {name: rival.guidance_scale for name, rival in found.items()}
    scale["embedding"] = config.sampling.guidance.scale
    modes = {name: Mode(row, name, config.sampling.at_scale(scale[name])) for name, row in rows.items()}
    pairs = test_pairs(4, seed=7)
    kept = evaluate(
        world()[0], pairs, modes, {MEASURE: measure}, config.sampling, keep=Keep(len(pairs)), batch_size=64
    )  # fmt: skip
    counter, accuracy = train()
    made = grids()
    publish(
        "world",
        {
            "drawn": drawn(),
            "costs": costs(),
            "grids": made,
            "scales": scales(rows),
            "flaw_counter": accuracy,
            "shares": {"drawn": _drawn_shares(counter), **shares(counter, kept.pictures.images)},
            "shares_means": means(kept),
            "pairs": len(pairs),
            "sampling": {name: mode.sampling.describe() for name, mode in modes.items()},
        },
    )
    shown = range(0, len(pairs), len(pairs) // 8)
    pictures = [[kept.pictures.images[mode][i] for i in shown] for mode in modes]
    labels = [pairs.pair(i)[0] for i in shown]
    grid(pictures, list(modes), labels, side=96).save(SAMPLES)


def _drawn_shares(counter: Any) -> dict[str, float]:
    pictures = draw(1024, "test", torch.Generator().manual_seed(13))
    return shares(counter, {"drawn": seen_through_the_autoencoder(pictures)})["drawn"]


if __name__ == "__main__":
    main()
