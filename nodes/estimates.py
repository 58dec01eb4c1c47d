"""What adapting and comparing will take, said on the node before work that is long enough to be worth the question."""

import logging
from collections.abc import Sequence

from reneg_core.durations import duration
from reneg_core.embedding import NegativeEmbedding
from reneg_core.evaluation import Pairs, Rivals
from reneg_core.rewards import Reward
from reneg_core.sampling import Sampling
from reneg_core.training import AdaptConfig
from reneg_core.training.rehearsal import rehearse_adaptation, rehearse_sampling

from .host.feedback import say
from .host.model import HostModel

WORTH_MEASURING = 40
"""Steps of micro-batches: fewer are done before it would be known what they take."""


def estimated(seconds: float, needed: int) -> str:
    """A time and bytes in words."""
    return f"about {duration(seconds)}, about {needed / 2**30:.1f} GiB of memory"


def say_adaptation(
    host: HostModel,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[int],
    start: NegativeEmbedding,
    config: AdaptConfig,
    node_id: str | None,
) -> None:
    """Measure a step, and say what all of it takes if no picture runs out of patience."""
    if config.steps * len(prompts) / config.micro_batch < WORTH_MEASURING:
        return
    say("measuring what a step takes", node_id)
    seconds, kept = _adaptation(host, reward, prompts, seeds, start, config)
    _tell(f"{len(prompts)} pictures, at most {config.steps} steps each", seconds, _weights(host) + kept, node_id)


def say_comparison(
    host: HostModel,
    reward: Reward,
    pairs: Pairs,
    rivals: Rivals,
    sampling: Sampling,
    batch: int,
    node_id: str | None,
) -> None:
    """Measure a guided pass, and say what all pictures take, with the adaptation before them if there is one."""
    batches, negatives = -(-len(pairs) // batch), len(rivals.names)
    if sampling.steps * batches * negatives < WORTH_MEASURING:
        return
    say("measuring what a picture takes", node_id)
    prompts, seeds = zip(*map(pairs.pair, range(len(pairs))), strict=True)
    together = min(batch, len(pairs))
    seconds = negatives * batches * rehearse_sampling(host, sampling, prompts[:together])
    needed = host.bytes_of_pass(together)
    if rivals.adapted and rivals.embeddings:
        [start] = rivals.embeddings.values()
        before, kept = _adaptation(host, reward, prompts, seeds, start, rivals.adapted)
        seconds, needed = seconds + before, max(needed, kept)
    _tell(f"{negatives * len(pairs)} pictures", seconds, _weights(host) + needed, node_id)


def _adaptation(host: HostModel, *work: object) -> tuple[float, int]:
    return rehearse_adaptation(host, *work, host.weights())


def _weights(host: HostModel) -> int:
    return sum(weight.nbytes for weight in host.weights())


def _tell(text: str, seconds: float, needed: int, node_id: str | None) -> None:
    line = f"{text}: {estimated(seconds, needed)}"
    logging.info("ReNeg: %s", line)
    say(line, node_id)
