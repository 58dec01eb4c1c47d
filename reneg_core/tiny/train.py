"""Train the tiny world from nothing: ``python -m reneg_core.tiny.train --out DIR [--stage vae|unet|reward|all]``.

The defaults make the shipped world (about an hour on two CPU cores). Each stage reads what the stage before it wrote
into ``DIR`` and may be repeated on its own.
"""

import argparse
import json
import time
from pathlib import Path

from reneg_core.tiny.budget import Budget
from reneg_core.tiny.train_reward import train_reward
from reneg_core.tiny.train_unet import train_unet
from reneg_core.tiny.train_vae import train_vae


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline and reward.safetensors")
    parser.add_argument("--stage", choices=("vae", "unet", "reward", "all"), default="all")
    parser.add_argument("--minutes", type=float, default=0.0, help="time limit for each stage (default: none)")
    parser.add_argument("--vae-steps", type=int, default=5000)
    parser.add_argument("--unet-steps", type=int, default=7000)
    parser.add_argument("--reward-steps", type=int, default=6000)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train the chosen stages."""
    options = parse(arguments)
    stages = {"vae": train_vae, "unet": train_unet, "reward": train_reward}
    seconds: dict[str, float] = {}
    for name, stage in stages.items():
        if options.stage in (name, "all"):
            print(f"{name}:", flush=True)
            start = time.time()
            stage(options.out, Budget(getattr(options, f"{name}_steps"), options.minutes))
            seconds[name] = round(time.time() - start)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
