"""What two real processes do over gloo, on the models of a few numbers: run by tests/training/test_gloo.py, in each.

    python gloo.py FOLDER    with RANK, WORLD_SIZE and the like in the environment

Writes FOLDER/RANK.json: what a comparison and an adaptation gave by themselves and shared, and how failures ended.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from evaluations import GreyModel, grey, level
from small import SmallModel, start_of

from reneg_core.evaluation import Keep, Mode, Pairs, evaluate
from reneg_core.failures import explained
from reneg_core.rewards.smoke import Brightness
from reneg_core.sampling import Sampling
from reneg_core.training import AdaptConfig, adapt
from reneg_core.training.workers import Workers, processes

SAMPLING = Sampling(steps=3).at_scale(2)


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def comparison(workers: Workers | None) -> list[Any]:
    pairs = Pairs.shared(["dark", "bright", "light"], [0, 1, 2])
    modes = {"none": Mode(level(0.0)), "embedding": Mode(level(*(0.02 * i for i in range(-4, 5))))}
    keep = Keep(3, 2)
    found = evaluate(GreyModel(), pairs, modes, {"m": grey}, SAMPLING, keep=keep, batch_size=2, workers=workers)
    pictures = [*found.pictures.images.values(), *found.losses.images.values()]
    return [found.to_json(), found.losses.pairs, digest(*pictures)]


def adaptation(workers: Workers | None) -> list[Any]:
    config = AdaptConfig(steps=2, sampling=SAMPLING, learning_rate=0.05, window=(0, 3), points=1, micro_batch=2)
    model, prompts = SmallModel(), [f"prompt {i}" for i in range(5)]
    found = adapt(model, Brightness(), prompts, list(range(5)), start_of(model), config, workers=workers)
    images = len(found.images) if workers and workers.rank else digest(found.images)
    return [found.rewards.tolist(), found.steps.tolist(), digest(found.negatives.tokens), images]


def failing(workers: Workers, kill: bool) -> int:
    def work(item: int) -> int:
        if item == 3:
            if kill:
                os.kill(os.getpid(), 9)
            raise FileNotFoundError("item 3 is none")
        return item

    def command() -> int:
        return len(list(workers.rounds(range(4), work)))

    return explained("adapt", lambda: workers.together(command), show_traceback=False)


def main() -> None:
    file = Path(sys.argv[1]) / f"{os.environ['RANK']}.json"
    with processes("cpu") as workers:
        found = {"count": workers.count, "rank": workers.rank}
        for work in (comparison, adaptation):
            found[work.__name__] = [work(None), work(workers)]
        found["failed"] = failing(workers, kill=False)
        file.write_text(json.dumps(found))
        found["left"] = failing(workers, kill=True)
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
