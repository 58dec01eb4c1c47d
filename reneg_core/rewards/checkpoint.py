"""Published weight files opened safely and matched to our networks key by key.

A network declares where each of its parameters lives in a published layout (`Rule`s). Loading names every missing and
every unexpected key in the file's own terms; nothing is guessed and nothing is skipped silently.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
SHOWN_KEYS = 8


@dataclass(frozen=True)
class Placement:
    """Where networks are put and in which precision; `shared` holds those loaded already, for rewards that share."""

    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    shared: dict[Hashable, nn.Module] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Rule:
    """Our parameter names matching `pattern` come from `sources` (regex templates), concatenated, maybe transposed."""

    pattern: str
    sources: tuple[str, ...]
    transposed: bool = False


class Checkpoint:
    """The tensors of one weight file by key, read lazily. Refuses pickles that hold anything but tensors."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in SUFFIXES:
            raise ValueError(f"{self.path}: expected a weight file ending in {', '.join(SUFFIXES)}")
        self._shapes, self._get = _open(self.path)

    def keys(self) -> list[str]:
        """Every key of the file."""
        return list(self._shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self._shapes:
            raise ValueError(f"{self.path} lacks the tensor {key!r}; is it the published file of this reward?")
        return self._shapes[key]

    def tensor(self, key: str) -> Tensor:
        self.shape(key)
        return self._get(key)


@dataclass(frozen=True)
class Layout:
    """A published key layout: `signature` is a key that only this layout has; keys matching `ignored` are dropped."""

    signature: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()

    def ignoring(self, patterns: Sequence[str]) -> "Layout":
        """The same layout for a network that leaves keys matching `patterns` to another."""
        return replace(self, ignored=(*self.ignored, *patterns))

    def rule(self, name: str) -> tuple[Rule, list[str]]:
        """The rule for our parameter `name` and the keys it names."""
        for rule in self.rules:
            match = re.fullmatch(rule.pattern, name)
            if match:
                return rule, [match.expand(source) for source in rule.sources]
        raise KeyError(name)

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        """Shape that our parameter `name` has in this checkpoint."""
        rule, keys = self.rule(name)
        first, *rest = checkpoint.shape(keys[0])
        shape = (first * len(keys), *rest)
        return shape[::-1] if rule.transposed else shape

    def depth(self, checkpoint: Checkpoint, prefix: str) -> int:
        """Number of blocks `prefix`N in the checkpoint."""
        marker = self.rule(f"{prefix}7.fc1.weight")[1][0].split("7", 1)[0]
        keys = checkpoint.keys()
        found = {key[len(marker) :].split(".")[0] for key in keys if key.startswith(marker)}
        return len(found)


def load_network(network: nn.Module, checkpoint: Checkpoint, layout: Layout, placement: Placement) -> nn.Module:
    """Fill `network` (built on the meta device) from `checkpoint`; frozen, in eval mode, at `placement`.

    Raises ValueError naming missing and unexpected keys, the first tensor of another shape, or the first that holds
    NaN or infinite values.
    """
    wanted = {name: layout.rule(name) for name in network.state_dict()}
    check_keys(checkpoint, [key for _, keys in wanted.values() for key in keys], layout.ignored)
    state = {}
    for name, parameter in network.state_dict().items():
        rule, keys = wanted[name]
        tensor = check_finite(checkpoint, keys[0], _joined(checkpoint, keys, rule.transposed, placement))
        while tensor.ndim > parameter.ndim and len(tensor) == 1:  # published with a batch dimension
            tensor = tensor[0]
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{checkpoint.path}: {keys[0]} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(parameter.shape)} from the other tensors and the configuration"
            )
        state[name] = tensor
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def check_keys(checkpoint: Checkpoint, wanted: Iterable[str], ignored: Sequence[str] = ()) -> None:
    """Raise ValueError unless the checkpoint holds exactly `wanted`, not counting keys that match `ignored`."""
    wanted, present = set(wanted), set(checkpoint.keys())
    extra = [key for key in sorted(present - wanted) if not any(re.fullmatch(p, key) for p in ignored)]
    missing = sorted(wanted - present)
    if missing or extra:
        problems = [f"{label} {_some(keys)}" for label, keys in (("missing", missing), ("unexpected", extra)) if keys]
        raise ValueError(f"{checkpoint.path}: not the published layout: {'; '.join(problems)}")


def check_finite(checkpoint: Checkpoint, key: str, tensor: Tensor) -> Tensor:
    """`tensor`, loaded for `key`; ValueError if it holds NaN or infinite values."""
    if tensor.numel() and not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor)):
        raise ValueError(
            f"{checkpoint.path}: {key} holds NaN or infinite values in {str(tensor.dtype).removeprefix('torch.')}; "
            "expected the published weights. Download the file again, or load it in fp32 if it is wider"
        )
    return tensor


def _joined(checkpoint: Checkpoint, keys: list[str], transposed: bool, placement: Placement) -> Tensor:
    parts = [checkpoint.tensor(key).to(device=placement.device, dtype=placement.dtype) for key in keys]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    return tensor.t().contiguous() if transposed else tensor


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys)} key(s): {', '.join(keys[:SHOWN_KEYS])}{more}"


def _open(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    state = _read_pickle(path)
    return {key: tuple(tensor.shape) for key, tensor in state.items()}, state.__getitem__


def _open_safetensors(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); download it again") from error
    return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.get_tensor  # noqa: SIM118


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        state = _read_legacy_pickle(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict (names to tensors), as the published file holds")
    return dict(state)


def _read_legacy_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors: it is incomplete, a TorchScript archive, or a pickle that may "
            "run code, which is never loaded; download the published state dict again, or take its safetensors file"
        ) from error
