"""The graphs that a decoder pack may hold: the float twin it is measured against, and one for each profile.

Exact: weights and activations in blocks of 8 bits. (4-bit weights, from float sources, in the same place.)

Throughput: W8A8 by rows. What was measured on SmolLM2 135M (30 layers, 8-bit blocks lose 0.0037 nats
per token; all figures on ``samples/english.txt``, two threads, AMX), by what is done about outliers:

| states before qkv and gate_up | gated states before down | KL | perplexity ratio |
|---|---|---|---|
| nothing | nothing | 0.029 | 1.029 |
| smoothed, alpha 0.3 / 0.5 / 0.6 / 0.7 | smoothed alike | 0.020 / 0.0098 / 0.0096 / 0.011 | 1.006 to 1.015 |
| rotated | nothing | 0.013 | 1.011 |
| rotated | smoothed, alpha 0.3 / 0.5 / 0.7 | 0.012 / 0.0083 / 0.021 | 1.008 / 1.004 / 1.023 |
| rotated | 8-bit blocks | 0.0054 | 1.000 |
| rotated | two digits | 0.0056 | 0.999 |

Smoothing needs calibration texts, and the last row is as good as 8-bit blocks there and faster: 2.1 to
2.2 times the exact graph's prefill instead of 1.9. A head by rows adds 0.0005 nats and a second copy of
the embedding, for a tenth of a decode step; it is not done.
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
    rows = RowProduct()
    return GraphForm(
        products={
            "qkv": rows,
            "o": rows,
            "gate_up": rows,
            "down": RowProduct(digits=2),
            "head": BlockProduct(block_size),
        },
        table=block_size,
        rotation=Rotation(hidden_size),
    )
