"""Learning negative embeddings: one for all prompts (:class:`Trainer`) or one per sample (:func:`adapt`)."""

from .adapt import AdaptResult, adapt
from .config import AdaptConfig, ConfigError, TrainConfig
from .objective import Batch, Reach, RewardGradient, reward_gradient
from .results import Observer, TrainResult
from .trainer import Trainer

__all__ = [
    "AdaptConfig",
    "AdaptResult",
    "Batch",
    "ConfigError",
    "Observer",
    "Reach",
    "RewardGradient",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "adapt",
    "reward_gradient",
]
