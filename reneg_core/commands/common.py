"""What several subcommands share: options, prompt files, progress bars, stopping cleanly."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..embedding import NegativeEmbedding
from ..files import write_picture
from ..model import DiffusionModel
from ..rewards.precision import PRECISIONS
from ..sampling import SOLVER_WORDS, SPACINGS, Sampling
from ..texforce.prompts import PROMPT_SETS
from ..text_file import read_prompt_entries, read_prompt_lines
from ..training.workers import Workers, device_of, processes
from .values import MOST, finite_number, whole_number

HANDCRAFTED = (
    "distorted, ugly, blurry, low resolution, low quality, bad, deformed, disgusting, Overexposed, Simple background, "
    "Plain background, Grainy, Underexposed, too dark, too bright, too low contrast, too high contrast, Broken, "
    "Macabre, artifacts, oversaturated"
)
"""The handcrafted negative prompt that the published inference script compares with."""


def add_model_options(parser: argparse.ArgumentParser, model: str = "tiny", dtype: str = "auto") -> None:
    """--model, --model-config, --device, --dtype, --lora."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default=model, help="tiny, a pipeline folder, a .safetensors file or a hub id (%(default)s)"
    )
    group.add_argument(
        "--model-config",
        default=None,
        metavar="FOLDER",
        help="for a single file: pipeline folder with its configuration; for VideoCrafter2's UNet: ZeroScope's folder",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")
    group.add_argument(
        "--dtype", default=dtype, help="auto, fp32, bf16, fp16; auto is bf16 on CUDA, else fp32 (%(default)s)"
    )
    group.add_argument(
        "--lora", action="append", default=[], metavar="FILE[*WEIGHT]",
        help="a LoRA of the text encoder (TexForce) or of other parts, with a weight behind it; repeat",
    )  # fmt: skip


def add_reward_dtype(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """--reward-dtype."""
    parser.add_argument(
        "--reward-dtype", *aliases, choices=tuple(PRECISIONS), default="fp32",
        help="precision of the reward's networks (%(default)s); its scores and preprocessing stay fp32",
    )  # fmt: skip


def reward_dtype_of(args: argparse.Namespace) -> torch.dtype:
    """What --reward-dtype names."""
    return PRECISIONS[args.reward_dtype]


SAMPLING_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "steps": (whole_number(1, MOST), "sampling steps"),
    "guidance_scale": (finite_number(), "how far guidance moves away from the negative"),
    "solver": (str, f"one of {', '.join(SOLVER_WORDS)} (euler is ddim)"),
    "spacing": (str, f"where the noise levels lie: {', '.join(SPACINGS)} (model: as the model's scheduler says)"),
    "guidance_start": (finite_number(0, 1), "share of the schedule at which guidance begins, 0 to 1"),
    "guidance_end": (finite_number(0, 1), "share of the schedule at which guidance ends, 0 to 1"),
    "guidance_rescale": (finite_number(0, 1), "give the guided estimate back its spread, 0 (off) to 1"),
    "guidance_attention": (finite_number(0), "guide inside the cross-attentions, at guidance scale 1; 0 is off"),
    "height": (whole_number(1, MOST), "pixels; the model's own without it"),
    "width": (whole_number(1, MOST), "pixels; the model's own without it"),
    "frames": (whole_number(1, MOST), "of a video; the model's own without it"),
}
"""What of a :class:`~reneg_core.sampling.Sampling` the command line can say, under the names of its mapping."""


def add_sampling_options(parser: argparse.ArgumentParser, default: str) -> None:
    """An option for each of :data:`SAMPLING_OPTIONS`, unset where it is not given, and --batch-size.

    default: where an unset option's value comes from, in words.
    """
    group = parser.add_argument_group("sampling", f"What is not given here is {default}.")
    for name, (kind, words) in SAMPLING_OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=words)
    group.add_argument("--batch-size", type=whole_number(1), default=None, help="at once (4; the tiny world: 64)")


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings that the command line names."""
    return {name: getattr(args, name) for name in SAMPLING_OPTIONS if getattr(args, name) is not None}


def sampling_of(args: argparse.Namespace, default: Sampling) -> Sampling:
    """``default`` with what the command line names; ValueError for what cannot be."""
    return default.changed(**given_sampling(args))


def chosen_sampling(args: argparse.Namespace, embedding: NegativeEmbedding | None) -> Sampling:
    """How to sample: what the command line names, then what ``embedding`` was learned for, then the default.

    Says on stderr which it is, and where the command line departs from what the embedding was learned for.
    """
    recorded = embedding.sampling if embedding else None
    sampling = sampling_of(args, recorded or default_sampling(args.model))
    where = "as the embedding was learned" if recorded and sampling.equals(recorded) else "as asked for"
    if not recorded and not given_sampling(args):
        where = "the default; the embedding's file does not say" if embedding else "the default"
    print(f"sampling: {sampling.describe()} ({where})", file=sys.stderr)
    if recorded and not sampling.equals(recorded):
        print(f"note: the embedding was learned for {recorded.describe()}", file=sys.stderr)
    return sampling


def default_sampling(model: str) -> Sampling:
    """How pictures are made where nothing else says it: 30 DDIM steps at 7.5, or at the tiny world's 3."""
    return Sampling(solver="ddim").at_scale(3.0 if model == "tiny" else 7.5)


def default_batch_size(model: str, loaded: DiffusionModel | None = None) -> int:
    """Pictures at once where nothing else says it; of clips, where the model is known to make some, one."""
    return 1 if hasattr(loaded, "frame_rate") else 64 if model == "tiny" else 4


def setting_lines(settings: Mapping[str, Any]) -> list[str]:
    """``name=value`` for every setting, as overrides are written; nested ones with a dot."""
    lines = []
    for name, value in settings.items():
        nested = value.items() if isinstance(value, Mapping) else ()
        lines += [f"{name}.{inner}={v!r}" for inner, v in nested] or [f"{name}={value!r}"]
    return lines


def say_how_many(workers: Workers) -> None:
    """On stderr, where there are several: a launcher that starts one only would not be noticed."""
    if workers.count > 1 and workers.rank == 0:
        print(f"{workers.count} processes share the work", file=sys.stderr)


def shared(args: argparse.Namespace, command: Callable[[argparse.Namespace, Workers], int]) -> int:
    """``command`` in the processes that the environment describes, each on its own device: they end together, and one
    of them speaks."""
    with processes(args.device) as workers, one_voice(workers):
        args.device = device_of(workers, args.device)
        say_how_many(workers)
        return workers.together(lambda: command(args, workers))


def load_model_of(args: argparse.Namespace) -> DiffusionModel:
    """The model that the options name, with the LoRAs that they name."""
    from ..backends import load_model
    from ..backends.lora_terms import parse_loras
    from ..backends.loras import with_loras

    loras = [one for text in args.lora for one in parse_loras(text)]
    return with_loras(load_model(args.model, device=args.device, dtype=args.dtype, config=args.model_config), loras)


def read_prompts(source: str, split: str, model: str) -> list[str]:
    """Prompts from a text file, one per line, from a JSON list of them or of objects with ``prompt`` or ``text``, of a
    set by its name, or the tiny world's own for an empty ``source``.

    split: ``train``, ``validation`` or ``test``. Errors: FileNotFoundError, OSError, ValueError for none or no text.
    """
    if not source:
        if model != "tiny":
            raise ValueError("Got no prompt file, expected one: a text file with one prompt per line.")
        from .. import tiny

        return getattr(tiny, f"{split}_prompts")()
    path = Path(source)
    if source in PROMPT_SETS and not path.is_file():
        return list(PROMPT_SETS[source])
    if not path.is_file():
        raise FileNotFoundError(
            f"No prompt file at {path}. Expected a text file with one prompt per line, or one of the sets "
            f"{', '.join(PROMPT_SETS)}."
        )
    prompts = read_prompt_entries(path) if path.suffix == ".json" else read_prompt_lines(path)
    if not prompts:
        raise ValueError(f"Got the empty prompt file {path}, expected one prompt per line.")
    return prompts


def independent_measure(model: str) -> dict[str, Callable[[Tensor, list[str]], Tensor]]:
    """The tiny world's analytic measure under the name ``independent``; other models have none."""
    if model != "tiny":
        return {}
    from ..tiny import measure

    return {"independent": measure}


def independent_parts(model: str) -> dict[str, Callable[[Tensor, list[str]], dict[str, Tensor]]]:
    """The parts that :func:`independent_measure` is made of, under the same name."""
    if model != "tiny":
        return {}
    from ..tiny import measure_parts

    return {"independent": measure_parts}


@contextmanager
def one_voice(workers: Workers) -> Iterator[None]:
    """Of several processes only the first prints, warns and shows bars; failures are said outside of this."""
    with ExitStack() as stack:
        if workers.rank:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


@contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into an answer of the yielded function; a second one interrupts at once.

    A signal that is ignored (SIGHUP under nohup) stays ignored.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("\nStopping after this micro-batch; once more to quit at once.", file=sys.stderr, flush=True)

    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]  # Windows has no SIGHUP
    before = {
        number: signal.signal(number, handle)
        for number in numbers
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ProgressObserver:
    """A tqdm bar with reward, time left and memory; preview grids in ``directory/previews``; TensorBoard if asked.

    The bar appears with the first step or validation, so that nothing that is said before is written into its line. A
    preview that cannot be written is said once and stops nothing.
    """

    def __init__(self, total: int, start: int, directory: Path, tensorboard: bool = False, quiet: bool = False) -> None:
        self.total, self.start = total, start
        self.directory = directory
        self.shown: dict[str, str] = {}
        self.writer = _tensorboard(directory) if tensorboard and not quiet else None
        self.quiet = quiet
        self.previews = not quiet
        self._bar: Any = None

    @property
    def bar(self) -> Any:
        """The bar, made when it is first needed."""
        if self._bar is None:
            from tqdm import tqdm

            options = {"unit": "step", "desc": "learning", "disable": self.quiet, "mininterval": 0.5}
            self._bar = tqdm(total=self.total, initial=self.start, **options)
        return self._bar

    def on_step(self, record: dict[str, Any]) -> None:
        self.shown |= {"reward": f"{record['reward']:.3f}", "MiB": str(record["memory_mib"])}
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(record["step"] - self.bar.n)
        self._log(record)

    def on_validation(self, record: dict[str, Any], images: Tensor, prompts: list[str]) -> None:
        self.shown["validation"] = f"{record['reward']:.3f}" + ("*" if record["best"] else "")
        self.bar.set_postfix(self.shown)
        if self.previews:
            self._preview(record["step"], images, prompts)
        self._log(record)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self.writer:
            self.writer.close()

    def _preview(self, step: int, images: Tensor, prompts: list[str]) -> None:
        from ..evaluation import grid

        picture = grid([[image] for image in images], row_labels=prompts, column_labels=[f"step {step}"])
        try:
            write_picture(self.directory / "previews" / f"step-{step:06d}.png", picture)
        except OSError as error:
            self.previews = False
            self.bar.write(f"note: previews are left out: {error.strerror}", file=sys.stderr)

    def _log(self, record: dict[str, Any]) -> None:
        if self.writer:
            for name in ("reward", "watch", "learning_rate", "gradient_norm", "distance", "kl", "clipped"):
                if record.get(name) is not None:
                    self.writer.add_scalar(f"{record['event']}/{name}", record[name], record["step"])


def _tensorboard(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=true needs the package tensorboard. Try: pip install tensorboard, or tensorboard=false."
        ) from error
    return SummaryWriter(directory / "tensorboard")
