"""Everything that only a CUDA device can say, in about ten minutes: which card, which settings, how long.

    make gpu                                  every part that has no result from this card yet
    python benchmarks/gpu.py sd15 --again     one part, measured again
    python benchmarks/gpu.py --small          the same script on small models and any device, to see that it works

Parts: sd15 (512 px) and sdxl (1024 px): seconds and peak memory of the stages of a training step, plain against ours,
by micro-batch, precision and option; rewards: HPSv2.1 at 1 and 32 pictures; sampling: against diffusers' pipeline.
Random weights of the real sizes. A part's JSON line is written as soon as it is measured.
"""

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from full_size import FULL, Full, full_size, hpsv21, said, tiny_decoder
from gradient_part import our_x0, plain_x0
from measure import RESULTS, machine, peak_bytes, publish, seconds, table

from reneg_core.backends import DiffusersModel, wrap
from reneg_core.rewards import load_reward
from reneg_core.sampling import Sampling, Size, sample
from reneg_core.training.decoding import Decoder
from reneg_core.training.footprint import Step, footprint
from reneg_core.training.memory import is_out_of_memory

SCALE, POINT, STEPS = 7.5, 24, 30
BATCHES = (1, 2, 4, 8, 16, 32)


class Bench:
    """A model of one size with its reward, on the device; ``small`` takes a test's pipeline and sharpness."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device, small: bool) -> None:
        from pipelines import build

        kind: Full = FULL[name]
        if small:
            self.model = wrap(build(kind.like).to(device, dtype), name)
            self.one, self.reward, pixels = self.model.encode([""]), load_reward("sharpness", device=device), 32
        else:
            self.model = full_size(kind, device, dtype)
            self.one, self.reward, pixels = said(kind, self.model), hpsv21(device, dtype), kind.pixels
            self.reward.text_features = lambda prompts: torch.ones(len(prompts), 1024, device=device)
        self.sampling = Sampling(steps=STEPS, size=Size(pixels, pixels)).at_scale(SCALE)
        self.sigmas = self.model.sigmas(self.sampling)

    def noise(self, rows: int) -> torch.Tensor:
        return self.model.noise(range(rows), self.sampling.size)

    def guided(self, rows: int) -> Callable[[], Any]:
        """One step of the rollout."""
        x, sampling = self.noise(rows), self.sampling.changed(steps=1)
        one = self.one.expand(rows)
        return lambda: sample(self.model, one, one, x, sampling)

    def gradient(self, rows: int, way: "Way") -> Callable[[], Any]:
        """A gradient point: denoise, decode, judge, and back."""
        x, prompts, x0_of = self.noise(rows), ["a red fox"] * rows, way.x0_of
        decode = Decoder.read(way.decoder).load(self.model).of(self.model, range(rows))

        def work() -> None:
            leaf = self.one.tokens.clone().requires_grad_()
            images = decode(
                x0_of(self.model, x, self.sigmas[POINT], self.one.expand(rows), leaf, SCALE), 0, range(rows)
            )
            torch.autograd.grad(self.reward.score(images, prompts).sum(), leaf)

        return work


class Way(NamedTuple):
    """How a gradient is taken: the guided estimate, whether all is recomputed, and what decodes."""

    x0_of: Callable[..., torch.Tensor]
    recompute: bool = False
    decoder: str = "full"


def ways(bench: Bench, folder: str) -> Iterator[tuple[str, Way]]:
    """By name, the model set up for each. Pooled vectors take no part in the plain version."""
    plain = bench.one.pooled is None
    own = our_x0 if plain else pooled_x0(bench)
    found = {"plain": Way(plain_x0)} if plain else {}
    found |= {"ours": Way(own), "ours, recomputed": Way(own, True)}
    for name in ("recomputed", "crop:0.5", "tiny"):
        decoder = tiny_decoder(bench.model, folder) if name == "tiny" else name
        found[f"ours, decoder {name}"] = Way(own, decoder=decoder)
    for name, way in found.items():
        recomputes = Decoder.read(way.decoder).recomputes(0)
        bench.model.checkpointing(way.recompute, way.recompute or recomputes)
        yield name, way
    bench.model.checkpointing(False)


def pooled_x0(bench: Bench) -> Callable[..., torch.Tensor]:
    """As ``our_x0``, for models that read a pooled vector."""
    from reneg_core.guidance import cfg
    from reneg_core.model import Branch, Conditioning

    def x0(model: DiffusersModel, x: Any, sigma: Any, positive: Conditioning, leaf: Any, scale: float) -> torch.Tensor:
        rows = len(x)
        with torch.no_grad():
            x0_positive = model.denoise(x, sigma, positive, (Branch.POSITIVE,))
        negative = Conditioning(leaf, bench.one.mask, bench.one.pooled).expand(rows)
        return cfg(x0_positive, model.denoise(x, sigma, negative, (Branch.NEGATIVE,)), scale)

    return x0


def fitted(work: Callable[[], Any], repeat: int) -> dict[str, float] | None:
    """Seconds and GiB of ``work``, None where the device has too little memory."""
    try:
        peak = peak_bytes(work)
        return {"seconds": seconds(work, repeat, 0), "peak_gib": peak / 2**30}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        release()


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def steps_of(name: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"pixels": 32 if args.small else FULL[name].pixels}
    for dtype in (torch.bfloat16, torch.float32) if name == "sd15" else (torch.bfloat16,):
        bench = Bench(name, dtype, device, args.small)
        rows: dict[str, Any] = {"rollout step": by_batch(lambda n, b=bench: b.guided(n), args)}
        with tempfile.TemporaryDirectory() as folder:
            for stage, way in ways(bench, folder):
                rows[stage] = by_batch(lambda n, b=bench, w=way: b.gradient(n, w), args)
                step = Step(1, bench.sampling, 1, way.recompute, decoder=way.decoder)
                computed = footprint(bench.model, bench.reward, step, bench.one)
                rows[stage]["computed_gib"] = computed.step / 2**30
        found[str(dtype).removeprefix("torch.")] = rows
        print(table(lines(rows), ("stage", "pictures", "s", "s a picture", "GiB")))
        del bench, rows
        release()
    return found


def by_batch(work: Callable[[int], Callable[[], Any]], args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rows in BATCHES[: 2 if args.small else None]:
        one = fitted(work(rows), args.repeat)
        if one is None:
            break
        found[str(rows)] = one
    return found


def lines(rows: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (stage, n, f"{one['seconds']:.3f}", f"{one['seconds'] / int(n):.3f}", f"{one['peak_gib']:.2f}")
        for stage, batches in rows.items()
        for n, one in batches.items()
        if n.isdigit()
    ]


def rewards_of(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reward = load_reward("sharpness", device=device) if args.small else hpsv21(device)
    if not args.small:
        reward.text_features = lambda prompts: torch.ones(len(prompts), 1024, device=device)
    for rows in (1, 32):
        images = torch.rand(rows, 3, 64 if args.small else 512, 64 if args.small else 512, device=device)
        work = torch.no_grad()(lambda images=images: reward.score(images, ["a red fox"] * len(images)))
        found[str(rows)] = fitted(work, args.repeat)
    return {"reward": reward.name, "pictures": found}


def sampling_of(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    bench = Bench("sd15", torch.bfloat16 if device.type == "cuda" else torch.float32, device, args.small)
    pipeline, tokens, noise = bench.model.pipeline, bench.one.tokens.to(bench.model.dtype), bench.noise(1)
    pipeline.set_progress_bar_config(disable=True)
    theirs = lambda: pipeline(  # noqa: E731
        prompt_embeds=tokens, negative_prompt_embeds=tokens, num_inference_steps=STEPS, guidance_scale=SCALE,
        latents=noise.to(bench.model.dtype), height=bench.sampling.size.height, width=bench.sampling.size.width,
        output_type="pt",
    )  # fmt: skip
    ours = torch.no_grad()(lambda: bench.model.decode(sample(bench.model, bench.one, bench.one, noise, bench.sampling)))
    return {"diffusers": fitted(theirs, args.repeat), "ours": fitted(ours, args.repeat)}


PARTS: dict[str, Callable[[argparse.Namespace, torch.device], dict[str, Any]]] = {
    "sd15": lambda args, device: steps_of("sd15", args, device),
    "rewards": rewards_of,
    "sampling": sampling_of,
    "sdxl": lambda args, device: steps_of("sdxl", args, device),
}


def measured_before(name: str) -> bool:
    """Whether there is a result of this part from this card and this torch."""
    path = RESULTS / f"{name}.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["machine"] == machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--again", action="store_true", help="also what has a result from this card")
    parser.add_argument("--small", action="store_true", help="small models on any device; keeps no result")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        print("make gpu: torch finds no CUDA device here. Try --small to see that the script works.")
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for part in args.parts or PARTS:
        name = f"gpu_{part}"
        if not args.again and not args.small and measured_before(name):
            print(f"{part}: measured on this card already, see benchmarks/results/{name}.json")
            continue
        found = PARTS[part](args, device)
        if args.small:
            print(json.dumps({part: found}))
        else:
            publish(name, found)
        release()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
