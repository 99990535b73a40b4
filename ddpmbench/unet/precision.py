"""The numerical precision of a network."""

from enum import StrEnum

import torch


class Precision(StrEnum):
    """The type of a network's products; sums are at least float32."""

    FP32 = "fp32"
    """float32 without rounding of products: the reference"""
    TF32 = "tf32"
    """float32, whose products may be rounded to 10 bits of mantissa first"""
    BF16 = "bf16"
    """bfloat16: 7 bits of mantissa"""
    FP16 = "fp16"
    """float16: 10 bits of mantissa"""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and activations."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.value, torch.float32)
