"""``reneg texforce``: tune a text encoder by a reward, and handle the LoRA files that come out."""

import argparse
import functools
from pathlib import Path
from typing import Any

from ..backends.loras import merged
from ..evaluation import Evaluation, Keep, Pairs, Rivals, Words, compare_rivals, prepare_folder
from ..evaluation.modes import TEXT
from ..files import check_folder
from ..sampling import Sampling
from ..texforce import TexForceResult, TextLora, fuse, load_text_lora
from ..texforce.lora import LAYOUTS
from ..texforce.prompts import PROMPT_SETS
from ..texforce.run_config import TexForceRunConfig
from ..training.run_config import load_run_config, recipe_names
from . import demo, train
from .evaluate import judges_of
from .values import finite_number

DESCRIPTION = """\
Tune a text encoder with a LoRA by a reward, the denoiser frozen (TexForce, arXiv 2311.15657), and convert and fuse the
LoRA files. They load in ComfyUI's Load LoRA and in diffusers.

  reneg texforce train --config tiny-direct output=runs/tuned
  reneg texforce convert texforce_sd15/ lora.safetensors
  reneg texforce fuse faces.safetensors 0.7 hands.safetensors 0.5 --output both.safetensors
"""
TRAIN = """\
Tune the text encoders of Stable Diffusion 1.x, 2.x or XL. route=policy learns from any reward (a JPEG's size, a
detector as module:function, pyiqa:METRIC), route=direct from the gradient of a differentiable one.

Every setting is a name=value pair; --config reads them from a YAML file or a recipe ({recipes}), and pairs on the
command line come last. prompts= also takes one of the sets {sets}.

  reneg texforce train --config tiny-policy output=runs/tuned
  reneg texforce train --config single-prompt model=sd15/ prompts=hand reward=my_detector:hands output=runs/hands
  reneg texforce train model=sd15/ prompts=prompts.txt reward=image_reward route=direct through=3 output=runs/direct
"""
DEMO = """Tune the tiny world's text encoder (minutes on two slow cores) and compare it with what it was, on prompts
that were not trained on. Leaves text-lora.safetensors, report.html, report.json, curve.png and grid.png. Interrupted,
it goes on where it was when called again."""


def add_parser(subparsers: Any) -> None:
    plain = functools.partial(dict, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = subparsers.add_parser("texforce", help="tune a text encoder", **plain(description=DESCRIPTION))
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    names = {"recipes": ", ".join(recipe_names(TexForceRunConfig)), "sets": ", ".join(PROMPT_SETS)}
    words = TRAIN.format(**names) + train.settings_help(TexForceRunConfig(), "texforce")
    learning = actions.add_parser("train", help="learn a LoRA", **plain(description=words))
    train.add_run_options(learning)
    learning.set_defaults(run=functools.partial(train.run, kind=TexForceRunConfig))
    _add_convert(actions)
    _add_fuse(actions)
    _add_demo(actions)


def _add_demo(actions: Any) -> None:
    parser = actions.add_parser("demo", help="see it work on the tiny world", description=DEMO)
    parser.add_argument("--output", default="demo-texforce", help="folder (%(default)s)")
    parser.add_argument("--config", default="tiny-direct", help="recipe name or YAML file (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings of the training")
    parser.set_defaults(run=run_demo)


def _add_convert(actions: Any) -> None:
    parser = actions.add_parser(
        "convert", help="change the layout of a text encoder's LoRA",
        description="Read a PEFT adapter folder (as TexForce publishes them), or a .safetensors of diffusers or kohya; "
        "write one .safetensors that ComfyUI and diffusers load.",
    )  # fmt: skip
    parser.add_argument("source", help="a file, or a folder with adapter_config.json")
    _add_target(parser)
    parser.set_defaults(run=convert)


def _add_fuse(actions: Any) -> None:
    parser = actions.add_parser(
        "fuse",
        help="join several into one",
        description="Write one LoRA that adds the weighted sum of several, exactly.",
    )
    parser.add_argument("parts", nargs="+", metavar="FILE WEIGHT", help="files, each with a weight behind it")
    parser.add_argument("--output", required=True, dest="target", metavar="FILE", help="a .safetensors file")
    _add_layout(parser)
    parser.set_defaults(run=fuse_files)


def run_demo(args: argparse.Namespace) -> int:
    """Tune, evaluate, report."""
    output = f"output={prepare_folder(args.output)}"
    config = load_run_config(args.config, [*args.overrides, output], TexForceRunConfig)

    def compare(job: train.Job, result: TexForceResult, progress: demo.Progress) -> Evaluation:
        return compare_encoders(job, result.lora, config.sampling, progress)

    return demo.show(config, compare, "A tuned text encoder for the tiny world", "texforce demo")


def compare_encoders(job: train.Job, lora: TextLora, sampling: Sampling, progress: demo.Progress) -> Evaluation:
    """The tuned encoder against the encoder as it was, each with the empty prompt and with plain words as the negative,
    on 256 test pairs, sampled as the training samples."""
    from ..tiny import test_prompts
    from ..tiny.rivals import rivals

    words = Words(rivals()[TEXT].text)
    compared = Rivals(texts={TEXT: words}, tuned={"texforce": merged(job.model, lora)}, labels={"texforce": "tuned"})
    pairs = Pairs.own(test_prompts()[: demo.TEST_PROMPTS], demo.NOISES, demo.NOISE_SEED)
    return compare_rivals(
        job.model, pairs, compared, judges_of(job.reward, "tiny", {}), sampling,
        keep=Keep(demo.PICTURES, demo.LOSSES), batch_size=demo.BATCH, progress=progress,
    )  # fmt: skip


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="a .safetensors file")
    _add_layout(parser)


def _add_layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        help="how the keys are called; ComfyUI reads both (%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true")


def convert(args: argparse.Namespace) -> int:
    """Write the target and say what it holds."""
    _checked_target(args)
    return _written(load_text_lora(args.source), args)


def fuse_files(args: argparse.Namespace) -> int:
    """Write the weighted sum and say what it holds."""
    if len(args.parts) % 2:
        raise ValueError(
            f"Got {' '.join(args.parts)}, expected a weight behind every file, for example a.safetensors 1."
        )
    _checked_target(args)
    weights = [_weight(text) for text in args.parts[1::2]]
    loras = [load_text_lora(path) for path in args.parts[::2]]
    return _written(fuse(list(zip(loras, weights, strict=True))), args)


def _weight(text: str) -> float:
    try:
        return finite_number()(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"weight: {error}.") from error


def _checked_target(args: argparse.Namespace) -> None:
    """Refuse what cannot be written before anything is read."""
    target = Path(args.target)
    if target.suffix != ".safetensors":
        raise ValueError(f"Got the target {target}, expected a .safetensors file.")
    if target.exists() and not args.overwrite:
        raise FileExistsError(f"{target} exists already. Try another name, or --overwrite.")
    check_folder(target.parent)


def _written(lora: TextLora, args: argparse.Namespace) -> int:
    path = lora.save(args.target, args.layout)
    print(f"{path}: {len(lora.layers)} layers of {' and '.join(lora.encoders)}, rank {lora.rank}")
    return 0
