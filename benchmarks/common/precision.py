"""What attacks compute in: bfloat16, or by ``--float32`` in that.

What judges them is in float32 always. A CPU without instructions for bfloat16 (``lscpu`` lists
``avx512_bf16`` or ``amx_bf16``) takes ten times as long for it as for float32.
"""

from __future__ import annotations

import argparse


def add_argument(parser: argparse.ArgumentParser) -> None:
    """``--float32``."""
    parser.add_argument("--float32", action="store_true", help="attacks in it, not in bfloat16")


def autocast(float32: bool) -> str | None:
    """An attack's setting of that name."""
    return None if float32 else "bfloat16"
