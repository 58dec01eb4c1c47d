"""Where a model lives and in which precision."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """``"auto"``: CUDA, then MPS, then CPU; any other name as torch takes it. ValueError if it is not there."""
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"Got device {name!r}, expected auto, cpu, cuda, cuda:1 or mps.") from error
        if (device.type == "cuda" and not torch.cuda.is_available()) or (
            device.type == "mps" and not torch.backends.mps.is_available()
        ):
            raise ValueError(f"Got device {name!r}, which this torch cannot use here. Try 'auto' or 'cpu'.")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """``"auto"``: bf16 on CUDA (fp16 gradients can underflow), fp32 elsewhere; or fp32, bf16, fp16."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"Got precision {name!r}, expected one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]
