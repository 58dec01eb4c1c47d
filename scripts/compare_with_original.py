"""Compare our ImageReward with the original package on real weights: for whoever has them.

The original does not import beside current libraries, so it runs in an environment of its own:

  python -m venv oracle
  oracle/bin/pip install "image-reward==1.5" "transformers==4.27.4" clip-anytorch "setuptools<80"
  python scripts/compare_with_original.py --original oracle/bin/python --weights models/ImageReward \\
         --prompt "a red fox in the snow" picture1.png picture2.png

Prints both scores of every picture and fails if they differ by more than --tolerance. The folder must hold
ImageReward.pt, med_config.json and vocab.txt.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="picture files")
    parser.add_argument("--original", required=True, help="python interpreter of the original's environment")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the published files")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference allowed (%(default)s)")
    args = parser.parse_args()
    theirs, ours = original_scores(args), our_scores(args)
    for image, a, b in zip(args.images, theirs, ours, strict=True):
        print(f"{image}  original {a:.5f}  ours {b:.5f}  difference {b - a:+.1e}")
    worst = max(abs(b - a) for a, b in zip(theirs, ours, strict=True))
    print(f"largest difference {worst:.1e}, allowed {args.tolerance:.1e}")
    return 0 if worst <= args.tolerance else 1


def original_scores(args: argparse.Namespace) -> list[float]:
    """Scores of the unmodified package, one call per picture."""
    folder = args.weights.resolve()
    job = {
        "reward": "image_reward",
        "prompts": [args.prompt],
        "weights": str(folder / "ImageReward.pt"),
        "vocab": str(folder / "vocab.txt"),
        "med_config": str(folder / "med_config.json"),
    }
    scores = []
    for image in args.images:
        command = [args.original, str(ROOT / "benchmarks" / "rewards_original.py")]
        done = subprocess.run(
            command,
            input=json.dumps(job | {"calls": [[str(Path(image).resolve())]]}),
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        scores += json.loads(done.stdout.splitlines()[-1])["scores"]
    return scores


def our_scores(args: argparse.Namespace) -> list[float]:
    """Scores of this project."""
    from reneg_core.rewards import load_reward
    from reneg_core.score import score_files

    paths = [Path(image) for image in args.images]
    results = score_files(load_reward("image_reward", weights=args.weights), paths, [args.prompt] * len(paths))
    return [result.score for result in results]


if __name__ == "__main__":
    sys.exit(main())
