"""The graphs that a decoder pack may hold: the float twin it is measured against, and one for each profile.

Exact: weights and activations in blocks of 8 bits. (4-bit weights, from float sources, in the same place.)

Throughput: W8A8 by rows. What was measured on SmolLM2 135M (30 layers; 8-bit blocks lose 0.0037 nats
per token; all on ``samples/english.txt``), by what is done about outliers:

| states before qkv and gate_up | gated states before down | KL | perplexity ratio |
|---|---|---|---|
| nothing | nothing | 0.029 | 1.029 |
| smoothed, alpha 0.3 / 0.5 / 0.6 / 0.7 | smoothed alike | 0.020 / 0.0098 / 0.0096 / 0.011 | 1.006 to 1.015 |
| rotated | nothing | 0.013 | 1.011 |
| rotated | smoothed, alpha 0.3 / 0.5 / 0.7 | 0.012 / 0.0083 / 0.021 | 1.008 / 1.004 / 1.023 |
| rotated | 8-bit blocks | 0.0054 | 1.000 |
| rotated | two digits | 0.0053 | 1.003 |
| rotated, two digits for qkv (and o) | two digits | 0.0048 | 1.002 |
| rotated, 8-bit blocks for qkv | two digits | 0.0044 | 1.006 |

Smoothing needs calibration texts and gains less. Against the exact graph with two threads and AMX, on
a busy machine, prefill was 2.3 times as fast in the sixth row, 2.0 in the seventh, which is the form
written here, and 1.8 in the last; a step of 16 rows 1.5, 1.4 and 1.4 times. On 4096 tokens of licence,
manual and code the seventh loses 0.0064 nats where 8-bit blocks lose 0.0052. The perplexity ratio
hangs on the rotation's random signs (0.999 to 1.014 for eight of them), the divergence does not. A head
by rows adds 0.0005 nats and a second copy of the embedding for a tenth of a decode step; it is not done.
"""

from __future__ import annotations

from model_packs.decoder.graph import GraphForm
from model_packs.decoder.products import BlockProduct, FloatProduct, RowProduct
from model_packs.decoder.quantize import Bits
from model_packs.decoder.rotation import Rotation

PARTS = ("qkv", "o", "gate_up", "down", "head")
FLOAT = GraphForm(products=dict.fromkeys(PARTS, FloatProduct()), table=None)


def exact_form(block_size: int, bits: Bits = 8) -> GraphForm:
    """Return the form of the profile "exact"; the embedding and the head always have 8 bits."""
    products = dict.fromkeys(PARTS, BlockProduct(block_size, bits)) | {"head": BlockProduct(block_size)}
    return GraphForm(products=products, table=block_size)


def throughput_form(block_size: int, hidden_size: int) -> GraphForm:
    """Return the form of the profile "throughput"; it shares the exact one's embedding and head."""
    fine = RowProduct(digits=2)
    return GraphForm(
        products={
            "qkv": fine,
            "o": fine,
            "gate_up": RowProduct(digits=1),  # most of the work, and the least outliers once rotated
            "down": fine,
            "head": BlockProduct(block_size),
        },
        table=block_size,
        rotation=Rotation(hidden_size),
    )
