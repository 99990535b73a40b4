"""Units: nats and bits per dimension, and how a real number becomes an 8-bit level."""

import math
from enum import StrEnum

NATS_PER_BIT = math.log(2.0)


class EightBit(StrEnum):
    """How a real number becomes one of the levels; published evaluations differ."""

    ROUND = "round"
    """to the nearest"""
    TRUNCATE = "truncate"
    """to the one below, as in the code of Dhariwal & Nichol 2021"""
