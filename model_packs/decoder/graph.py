"""Write the ONNX graph of a Llama-style decoder over a caller-owned KV cache.

Inputs: ``input_ids`` int64 [B, S]; ``seqlens_k`` int32 [B], each row's tokens after this call minus
one; ``total_sequence_length`` int32 [1], the largest of them plus one; ``out_index`` int64 [R], rows
of the flattened [B * S] states whose logits are wanted; per layer ``past_k.{i}`` and ``past_v.{i}``
float32 [B, kv_heads, P, head_dim]. Outputs: ``logits`` float32 [R, vocab] and ``present_k.{i}``,
``present_v.{i}`` of the shape of the past, to be bound to the same memory.

Rotary embedding happens inside GroupQueryAttention, which takes each row's position from
``seqlens_k``. Operators of domain com.microsoft are ONNX Runtime's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_packs.decoder.products import BlockProduct, Product, RowProduct
from model_packs.decoder.quantize import quantize_blocks
from model_packs.decoder.rotation import Rotation, rotated
from model_packs.decoder.tensor_file import Stored, TensorFile
from model_packs.decoder.weights import DecoderConfig, DecoderWeights, FloatArray, TensorSource, rotary_tables
from model_packs.row_scales import MICROSOFT

OPSET = 21


@dataclass(frozen=True, kw_only=True)
class GraphForm:
    """How a graph stores and multiplies its matrices.

    ``products`` gives the form of ``qkv``, ``o``, ``gate_up``, ``down`` and ``head``; ``table`` the size
    of the embedding's 8-bit blocks, None for float32: a head tied to the embedding shares its blocks.
    ``rotation`` turns the states between the embedding and the head.
    """

    products: Mapping[str, Product]
    table: int | None
    rotation: Rotation | None = None


class GraphWriter:
    """Collects nodes and constants of a graph of ``form``."""

    opset = OPSET

    def __init__(self, tensors: TensorFile, form: GraphForm) -> None:
        self.tensors = tensors
        self.form = form
        self.nodes: list[Any] = []

    def node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Add a constant, once under each name, and return the name."""
        return self.tensors.add(name, np.asarray(value))

    def linear(self, source: str, name: str, weights: FloatArray) -> str:
        """Multiply ``source`` [..., in] with ``weights`` [out, in], in the form for the name's last part."""
        return self.form.products[name.rpartition(".")[2]].write(self, source, name, weights)

    def embedding(self, weights: FloatArray) -> str:
        """Look ``input_ids`` up in ``weights`` [vocab, hidden]; return the states [B, S, hidden]."""
        vocab, hidden = weights.shape
        if self.form.table is None:
            table = self.constant("embedding.weight", weights)
            return self.node("Gather", [table, "input_ids"], ["embedding.out"])
        # Gathered as [vocab, blocks, block], the very tensor that a tied head multiplies with.
        values, scales = quantize_blocks(weights, self.form.table)
        gathered = self.node(
            "GatherBlockQuantized",
            [
                self.constant("embedding.weight", values),
                "input_ids",
                self.constant("embedding.gather_scales", scales.reshape(vocab, -1, 1)),
            ],
            ["embedding.gathered"],
            MICROSOFT,
            bits=8,
            block_size=self.form.table,
            gather_axis=0,
            quantize_axis=2,
        )
        # The same bytes in the shape that a product wants.
        self.constant("embedding.scales", scales)
        shape = self.constant("embedding.shape", np.array([0, 0, hidden], dtype=np.int64))
        return self.node("Reshape", [gathered, shape], ["embedding.out"])

    def turned(self, source: str, name: str, gamma: FloatArray | None = None) -> str:
        """Turn ``source`` [..., hidden] into the rotated basis, or with ``gamma`` out of it, times gamma."""
        rotation = self.form.rotation
        assert rotation is not None
        values = rotation.integers()
        scales = np.ones(rotation.size, np.float32) / rotation.divisor
        if gamma is not None:
            values, scales = np.ascontiguousarray(values.T), scales * gamma
        # Integers of 16 bits, because float32 products round differently alone and in a batch.
        return RowProduct(digits=2).multiply(self, source, values, scales, name)

    def head(self, source: str, weights: FloatArray | None, config: DecoderConfig) -> None:
        """Write the logits of ``source`` [R, hidden]; ``weights`` None means tied to the embedding."""
        if weights is not None:
            logits = self.linear(source, "head", weights)
        elif self.form.table is None:
            logits = self.node("Gemm", [source, "embedding.weight"], ["head.out"], transB=1)
        else:
            shape = (config.vocab_size, config.hidden_size)
            stored = ["embedding.weight", "embedding.scales"]
            logits = BlockProduct(self.form.table).multiply(self, source, stored, "head", shape)
        self.node("Identity", [logits], ["logits"])

    def norm(
        self, residual: str, update: str, name: str, gamma: FloatArray, epsilon: float
    ) -> tuple[str, str]:
        """Add ``update`` to ``residual`` (if any) and RMS-normalise; return the normalised and the sum."""
        weight = self.constant(f"{name}.weight", gamma)
        if not update:
            return self.node(
                "SimplifiedLayerNormalization", [residual, weight], [f"{name}.out"], axis=-1, epsilon=epsilon
            ), residual
        total = f"{name}.sum"
        out = self.node(
            "SkipSimplifiedLayerNormalization",
            [residual, update, weight],
            [f"{name}.out", "", "", total],
            MICROSOFT,
            epsilon=epsilon,
        )
        return out, total


def write_graph(weights: DecoderWeights, path: Path, form: GraphForm, stored: Stored | None = None) -> None:
    """Write ``path``, and ``path`` + ``.data`` with what is not in ``stored`` (by graphs beside it) yet."""
    from onnx import TensorProto, helper

    config = weights.config
    with TensorFile(path.with_name(f"{path.name}.data"), stored) as tensors:
        writer = GraphWriter(tensors, form)
        _decoder(writer, weights)
        cache: list[str | int | None] = ["batch", config.kv_heads, "capacity", config.head_dim]
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("out_index", TensorProto.INT64, ["rows"]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", config.vocab_size])]
        for layer in range(config.layers):
            for side in "kv":
                inputs.append(helper.make_tensor_value_info(f"past_{side}.{layer}", TensorProto.FLOAT, cache))
                outputs.append(
                    helper.make_tensor_value_info(f"present_{side}.{layer}", TensorProto.FLOAT, cache)
                )
        graph = helper.make_graph(writer.nodes, "decoder", inputs, outputs, initializer=tensors.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="model_packs")
    path.write_bytes(model.SerializeToString(deterministic=True))


def _decoder(writer: GraphWriter, weights: DecoderWeights) -> None:
    config, rotation = weights.config, writer.form.rotation
    tensor = weights.tensor if rotation is None else rotated(weights.tensor, config, rotation)
    for name, table in zip(("rotary.cos", "rotary.sin"), rotary_tables(config), strict=True):
        writer.constant(name, table)
    residual, update = writer.embedding(tensor("embedding")), ""
    if rotation is not None:
        residual = writer.turned(residual, "turn_in")
    for layer in range(config.layers):
        name = f"layer.{layer}"
        states, residual = writer.norm(
            residual, update, f"{name}.attention_norm", tensor(f"{name}.attention_norm"), config.norm_epsilon
        )
        update = _attention(writer, config, tensor, states, layer)
        states, residual = writer.norm(
            residual, update, f"{name}.mlp_norm", tensor(f"{name}.mlp_norm"), config.norm_epsilon
        )
        update = _mlp(writer, tensor, states, name)
    gamma = tensor("final_norm")
    plain = gamma if rotation is None else np.ones_like(gamma)
    states, _ = writer.norm(residual, update, "final_norm", plain, config.norm_epsilon)
    shape = writer.constant("rows.shape", np.array([-1, config.hidden_size], dtype=np.int64))
    rows = writer.node("Reshape", [states, shape], ["rows.flat"])
    wanted = writer.node("Gather", [rows, "out_index"], ["rows.wanted"])
    if rotation is not None:
        wanted = writer.turned(wanted, "turn_out", gamma)
    writer.head(wanted, None if config.tied else tensor("head"), config)


def _attention(
    writer: GraphWriter, config: DecoderConfig, tensor: TensorSource, states: str, layer: int
) -> str:
    name = f"layer.{layer}"
    packed = np.concatenate([tensor(f"{name}.{part}") for part in "qkv"])
    qkv = writer.linear(states, f"{name}.qkv", packed)
    if config.attention_bias:
        biases = np.concatenate([tensor(f"{name}.{part}_bias") for part in "qkv"])
        bias = writer.constant(f"{name}.qkv.bias", biases)
        qkv = writer.node("Add", [qkv, bias], [f"{name}.qkv.biased"])
    lengths = ["seqlens_k", "total_sequence_length"]
    attended = writer.node(
        "GroupQueryAttention",
        [qkv, "", "", f"past_k.{layer}", f"past_v.{layer}", *lengths, "rotary.cos", "rotary.sin"],
        [f"{name}.attention", f"present_k.{layer}", f"present_v.{layer}"],
        MICROSOFT,
        num_heads=config.heads,
        kv_num_heads=config.kv_heads,
        do_rotary=1,
        rotary_interleaved=0,
        scale=config.head_dim**-0.5,
    )
    return writer.linear(attended, f"{name}.o", tensor(f"{name}.o"))


def _mlp(writer: GraphWriter, tensor: TensorSource, states: str, name: str) -> str:
    """SwiGLU with gate and up in one product: down(silu(gate) * up)."""
    fused = np.concatenate([tensor(f"{name}.gate"), tensor(f"{name}.up")])
    both = writer.linear(states, f"{name}.gate_up", fused)
    writer.node("Split", [both], [f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
    # QuickGelu with alpha 1 is x * sigmoid(x), SiLU, in one node.
    active = writer.node("QuickGelu", [f"{name}.gate"], [f"{name}.silu"], MICROSOFT, alpha=1.0)
    gated = writer.node("Mul", [active, f"{name}.up"], [f"{name}.gated"])
    return writer.linear(gated, f"{name}.down", tensor(f"{name}.down"))
