"""``reneg infer``: make pictures or clips with a learned, a written or no negative."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clip_files import FORMATS, check_format, write_clip
from ..embedding import NegativeEmbedding, load_embedding
from ..files import check_folder, write_picture
from ..model import Conditioning, DiffusionModel
from ..sampling import Sampling, sample
from .common import (
    HANDCRAFTED,
    add_model_options,
    add_sampling_options,
    chosen_sampling,
    default_batch_size,
    load_model_of,
    read_prompts,
)
from .values import MOST, finite_number, prompt_text, whole_number

DESCRIPTION = """\
Make pictures. --prompt-type says what stands in the negative branch:
  neg_emb      the embedding of --neg-embedding
  neg_prompt   the text of --negative-prompt (default: the handcrafted one that ReNeg is compared with)
  only_pos     the empty prompt

An embedding's file says which sampling it was learned for; without options that one is used. Models of video make
clips, which are written as GIF or MP4.

  reneg infer --model sd15/ --neg-embedding sd1.5_reneg_emb.bin --prompt "a red fox in the snow"
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "infer",
        help="make pictures or clips",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser, dtype="fp32")
    add_sampling_options(
        parser, "what the embedding was learned for, else 30 DDIM steps at guidance scale 7.5 (the tiny world: 3)"
    )
    parser.add_argument("--prompt", type=prompt_text, action="append", default=[], help="repeat for several")
    parser.add_argument("--prompts", default="", metavar="FILE", help="text file with one prompt per line")
    parser.add_argument("--prompt-type", choices=("neg_emb", "neg_prompt", "only_pos"), default="neg_emb")
    parser.add_argument("--neg-embedding", "--neg-emb", default="", metavar="FILE", help="for neg_emb")
    parser.add_argument("--negative-prompt", type=prompt_text, default=HANDCRAFTED, help="for neg_prompt")
    parser.add_argument(
        "--strength", type=finite_number(), default=1.0, help="embedding against the empty prompt: 0 none, 1 full"
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=42, help="of the first picture; the next count up (%(default)s)"
    )
    parser.add_argument("--images-per-prompt", type=whole_number(1, MOST), default=1)
    parser.add_argument("--clip", choices=FORMATS, default="gif", help="how clips are written (%(default)s)")
    parser.add_argument("--output", default="pictures", help="folder (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write one PNG per picture or one file per clip, with its settings in the file, and print their paths."""
    check_format(args.clip)
    prompts = args.prompt or read_prompts(args.prompts, "test", args.model)
    if args.prompt_type == "neg_emb" and not args.neg_embedding:
        raise ValueError("--prompt-type neg_emb needs --neg-embedding FILE. Try that, or neg_prompt, or only_pos.")
    embedding = load_embedding(args.neg_embedding) if args.prompt_type == "neg_emb" else None
    sampling = chosen_sampling(args, embedding)
    check_folder(args.output)
    model = load_model_of(args)
    args.batch_size = args.batch_size or default_batch_size(args.model, model)
    if embedding:
        embedding.require(model.family, model.width, model.max_tokens)
    jobs = [(p, args.seed + i) for i, p in enumerate(p for p in prompts for _ in range(args.images_per_prompt))]
    for path in model.run(lambda prepared: _draw(prepared, jobs, embedding, sampling, args)):
        print(path)
    return 0


def negative_of(model: DiffusionModel, embedding: NegativeEmbedding | None, args: argparse.Namespace) -> Conditioning:
    """The negative branch's conditioning, one row, with every part that the embedding has."""
    if embedding:
        if args.strength != 1:
            embedding = embedding.toward_null(model.encode([""]), args.strength)
        return embedding.conditioning().to(model.device)
    return model.encode([args.negative_prompt if args.prompt_type == "neg_prompt" else ""])


@torch.no_grad()
def _draw(
    model: DiffusionModel,
    jobs: list[tuple[str, int]],
    embedding: NegativeEmbedding | None,
    sampling: Sampling,
    args: argparse.Namespace,
) -> list[Path]:
    negative, paths = negative_of(model, embedding, args), []
    folder = Path(args.output)
    for first in range(0, len(jobs), args.batch_size):
        prompts, seeds = zip(*jobs[first : first + args.batch_size], strict=True)
        noise = model.noise(seeds, sampling.size)
        latents = sample(model, model.encode(prompts), negative, noise, sampling)
        for offset, image in enumerate(model.decode(latents)):
            settings = {name: getattr(args, name) for name in ("model", "prompt_type", "neg_embedding")}
            settings |= {**sampling.to_mapping(), "prompt": prompts[offset], "seed": seeds[offset]}
            name = f"{first + offset:05d}-{args.prompt_type}-seed{seeds[offset]}"
            paths.append(_written(folder / name, image, json.dumps(settings), args.clip, model))
    return paths


def _written(path: Path, image: Tensor, settings: str, clip: str, model: DiffusionModel) -> Path:
    """A picture ``[3,H,W]`` or a clip ``[T,3,H,W]`` with its settings, at ``path`` and a suffix."""
    from PIL.PngImagePlugin import PngInfo

    from ..evaluation import to_image

    if image.ndim == 4:
        return write_clip(f"{path}.{clip}", image, model.frame_rate, settings)
    info = PngInfo()
    info.add_text("reneg", settings)
    return write_picture(f"{path}.png", to_image(image), pnginfo=info)
