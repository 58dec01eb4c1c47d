"""What decodes the picture that a gradient comes from: how near each way's gradient is to the full decoder's, what it
costs, and whether training with it still helps.

    python benchmarks/decoders.py [agreement] [cost] [learning]        default: all, about fifteen minutes

agreement: on the tiny world, whose tiny decoder is distilled here in a minute. cost: a gradient point of Stable
Diffusion 1.5's real architecture with random weights (small latents on the CPU), in turn, beside the memory that
``footprint`` computes, and that at the published sizes. learning: the recipe ``fast`` on the tiny world at half its
steps, one seed, judged on the test pairs by the independent measure. Each keeps its own part of the result.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from full_size import FULL, full_size, hpsv21, said, tiny_decoder
from lab import MEASURE, REWARD, encoded, judge, learn, means, recipe, test_pairs, world
from measure import RESULTS, in_turn, machine, peak_bytes, publish, table
from sd15_full_size import STEPS, build
from torch import Tensor

from reneg_core.backends import DiffusersModel
from reneg_core.backends.diffusers import decoded
from reneg_core.backends.tiny_decoder import load_tiny_decoder
from reneg_core.evaluation import Mode
from reneg_core.rewards import load_reward
from reneg_core.sampling import Sampling, Size
from reneg_core.tiny import train_prompts
from reneg_core.tiny.pictures import draw
from reneg_core.training import Batch, Reach, reward_gradient
from reneg_core.training.decoding import Decoder
from reneg_core.training.footprint import CARDS, Step, fits, footprint

WAYS = ("full", "recomputed", "tiny", "crop:0.75", "crop:0.5")
EVERYTHING = "everything recomputed"
CHANNELS, DISTILLING = 32, 400
PROMPTS, ROWS = 64, 16
LEARNED = 30


def distilled(folder: Path) -> dict[str, float]:
    """The tiny world's tiny decoder in ``folder``, taught there if there is none; how near it is on other pictures: the
    mean error of a pixel, and that of the decoder itself against the drawn picture."""
    if not (folder / "config.json").is_file():
        distil(folder)
    model, tiny = world()[0], load_tiny_decoder(folder)
    latents, expected, drawn = pairs(model, 128, torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = tiny(latents)
    found = {"full": _apart(expected, drawn), "tiny": _apart(made, expected), "tiny_to_drawn": _apart(made, drawn)}
    return {"steps": DISTILLING, **found}


def distil(folder: Path) -> None:
    """Teach an AutoencoderTiny the tiny world's decoder on the latents of drawn pictures, and save it."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    model, generator = world()[0], torch.Generator().manual_seed(0)
    vae = model.pipeline.vae
    student = AutoencoderTiny(
        latent_channels=vae.config.latent_channels,
        encoder_block_out_channels=(CHANNELS,) * 3,
        decoder_block_out_channels=(CHANNELS,) * 3,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(2, 1, 1),
    )
    optimizer = torch.optim.Adam(student.decoder.parameters(), lr=2e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, DISTILLING)
    for _ in range(DISTILLING):
        latents, expected, _ = pairs(model, 16, generator)
        loss = (decoded(student, latents) - expected).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    student.save_pretrained(folder)


@torch.no_grad()
def pairs(model: DiffusersModel, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The denoiser's latents of drawn pictures, the full decoder's pictures of them, and the drawn ones."""
    drawn = draw(count, "train", generator).images
    vae = model.pipeline.vae
    latents = vae.encode(drawn * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    return latents, model.decode(latents), drawn


def _apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().mean().item()


def settings(way: str, folder: Path) -> str:
    return f"tiny:{folder}" if way == "tiny" else "full" if way == EVERYTHING else way


@contextmanager
def recomputing(model: DiffusersModel, way: str) -> Iterator[None]:
    model.checkpointing(way == EVERYTHING, way not in ("full", "tiny"))
    try:
        yield
    finally:
        model.checkpointing(False)


def agreement(folder: Path) -> dict[str, Any]:
    """Cosine of the tokens' gradient to the full decoder's, for one batch of prompts and as a mean over parts of it."""
    apart = distilled(folder)
    model, reward = world()
    prompts, reaches = train_prompts()[:PROMPTS], {"one step": (20, 1), "to the end": (15, 0)}
    sampling = recipe("paper").sampling.at_scale(3.0)
    loaded = {way: Decoder.read(settings(way, folder)).load(model) for way in WAYS}
    found: dict[str, Any] = {"distilled": apart, "prompts": PROMPTS, "batch": ROWS, "reaches": {}}
    for name, (point, through) in reaches.items():
        parts: dict[str, list[Tensor]] = {way: [] for way in WAYS}
        for first in range(0, PROMPTS, ROWS):
            rows = prompts[first : first + ROWS]
            seeds = list(range(first, first + len(rows)))
            batch = Batch(rows, encoded(rows), model.noise(seeds))
            for way in WAYS:
                reach = Reach([point], through, decode=loaded[way].of(model, seeds))
                with recomputing(model, way):
                    gradient = reward_gradient(model, reward, batch, encoded([""]), sampling, reach)
                parts[way].append(gradient.tokens.flatten().double())
        found["reaches"][name] = {way: _likeness(parts["full"], parts[way]) for way in WAYS}
    rows = [(way, *(f"{found['reaches'][r][way]['whole']:.4f}" for r in reaches)) for way in WAYS]
    print(table(rows, ("decoder", *reaches)))
    return found


def _likeness(full: list[Tensor], other: list[Tensor]) -> dict[str, float]:
    cosine = torch.nn.functional.cosine_similarity
    alone = [cosine(a, b, dim=0).item() for a, b in zip(full, other, strict=True)]
    whole = [sum(parts) for parts in (full, other)]
    ratio = (whole[1].norm() / whole[0].norm()).item()
    return {"whole": cosine(*whole, dim=0).item(), "batch": sum(alone) / len(alone), "length": ratio}


def cost(folder: Path, side: int) -> dict[str, Any]:
    """Seconds and bytes of a gradient point by way at ``side`` pixels, and what is computed at published sizes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, reward = build(torch.float32, device), load_reward("sharpness", device=device)
    tiny_decoder(model, folder)
    sampling = Sampling(steps=STEPS, size=Size(side, side)).at_scale(7.5)
    late = Sampling(steps=1, size=Size(side, side)).at_scale(7.5)
    batch, empty = (
        Batch(["a red fox"], model.encode(["a red fox"]), model.noise([0], sampling.size)),
        model.encode([""]),
    )
    ways = (*WAYS, EVERYTHING)

    def point(way: str) -> Callable[[], Any]:
        reach = Reach([0], decode=Decoder.read(settings(way, folder)).load(model).of(model, [0]))

        def work() -> None:
            with recomputing(model, way):
                reward_gradient(model, reward, batch, empty, late, reach)

        return work

    measured = {
        way: {"seconds": taken, "peak_mib": peak_bytes(point(way)) / 2**20}
        for way, taken in in_turn({way: point(way) for way in ways}, 3).items()
    }
    for way in ways:
        step = Step(1, sampling, 1, way == EVERYTHING, decoder=settings(way, folder))
        one = footprint(model, reward, step)
        measured[way]["computed_mib"] = max(one.gradient, one.judging) / 2**20
    rows = [(way, *(f"{value:,.2f}" for value in one.values())) for way, one in measured.items()]
    print(table(rows, ("decoder", "s", "MiB measured", "MiB computed")))
    return {"pixels": side, "ways": measured, "published": {name: published(name, folder) for name in PUBLISHED}}


PUBLISHED = ("sd15_256", "sd15", "sd15_768", "sdxl")


def published(name: str, folder: Path) -> dict[str, Any]:
    """GiB of a step and what fits by way, in bf16 with HPSv2.1, from shapes."""
    kind = FULL[name.removesuffix("_256")]
    size = Size(256, 256) if name.endswith("_256") else kind.size
    model, reward = full_size(kind), hpsv21()
    one, sampling = said(kind, model), Sampling(steps=STEPS, size=size).at_scale(7.5)
    found: dict[str, Any] = {"label": kind.label, "pixels": size.width, "ways": {}}
    for way in (*WAYS, EVERYTHING):

        def of(rows: int, way: str = way) -> Any:
            step = Step(rows, sampling, 1, way == EVERYTHING, decoder=settings(way, folder))
            return footprint(model, reward, step, one)

        found["ways"][way] = {"gib": of(1).peak / 2**30, "fits": fits(of)}
    rows = [(way, f"{one['gib']:.1f}", *one["fits"].values()) for way, one in found["ways"].items()]
    print(table(rows, (f"{kind.label} {size.width}", "GiB", *(f"{card} GB" for card in CARDS))))
    return found


def learning(folder: Path) -> dict[str, Any]:
    """The recipe ``fast`` at half its steps by way: reward and measure of the finished pictures on the test pairs."""
    distilled(folder)
    settings_of = {way: settings(way, folder) for way in WAYS if way != "recomputed"}
    modes, seconds = {"start": Mode(encoded([""]))}, {}
    for way, decoder in settings_of.items():
        config = recipe("fast", steps=LEARNED, decoder=decoder, checkpointing=False, validate_every=LEARNED)
        embedding, seconds[way] = learn(config)
        modes[way] = Mode(embedding.conditioning())
    evaluation = judge(test_pairs(2, seed=6), modes, recipe("fast").sampling)
    found = means(evaluation)
    result: dict[str, Any] = {"steps": LEARNED, "pairs": 144, "start": found["start"], "ways": {}}
    for way in settings_of:
        gain = evaluation.difference(MEASURE, way, "start")
        result["ways"][way] = {
            **found[way], "seconds": round(seconds[way], 1), "gain": gain.value, "interval": list(gain.interval)
        }  # fmt: skip
    rows = [(way, f"{one[REWARD]:.3f}", f"{one[MEASURE]:.3f}", one["seconds"]) for way, one in result["ways"].items()]
    print(table(rows, ("decoder", "reward", "measure", "s")))
    return result


def kept() -> dict[str, Any]:
    path = RESULTS / "decoders.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {part: found[part] for part in PARTS if part in found}


PARTS = ("agreement", "cost", "learning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--pixels", type=int, default=512 if torch.cuda.is_available() else 128, help="of the cost")
    parser.add_argument("--student", type=Path, help="folder of the tiny world's tiny decoder, to take or to keep it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        student = args.student or Path(folder) / "student"
        works = {
            "agreement": lambda: agreement(student),
            "cost": lambda: cost(Path(folder), args.pixels),
            "learning": lambda: learning(student),
        }
        for part in args.parts or PARTS:
            publish("decoders", {**kept(), part: {**works[part](), "machine": machine()}})


if __name__ == "__main__":
    main()
