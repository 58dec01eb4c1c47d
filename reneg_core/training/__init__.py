"""Learning negative embeddings: one for all prompts (:class:`Trainer`) or one per sample (:func:`adapt`)."""

from .adapt import AdaptResult, adapt, adapt_table
from .config import AdaptConfig, ConfigError, TrainConfig
from .objective import Batch, Reach, RewardGradient, reward_gradient
from .prompts import Prompts, split_prompts
from .results import Observer, TrainResult
from .run import Run, Session, Stopped
from .trainer import Trainer

__all__ = [
    "AdaptConfig",
    "AdaptResult",
    "Batch",
    "ConfigError",
    "Observer",
    "Prompts",
    "Reach",
    "RewardGradient",
    "Run",
    "Session",
    "Stopped",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "adapt",
    "adapt_table",
    "reward_gradient",
    "split_prompts",
]
