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

from pathlib import Path
from typing import Any

import numpy as np

from model_packs.decoder.quantize import quantize_blocks
from model_packs.decoder.tensor_file import TensorFile
from model_packs.decoder.weights import DecoderConfig, DecoderWeights, FloatArray, rotary_tables

MICROSOFT = "com.microsoft"
OPSET = 21
# int8 activations per block: the fast kernels. Level 1 (float32) was measured ten times slower.
ACCURACY_LEVEL = 4


class GraphWriter:
    """Collects nodes; ``block_size`` None writes plain float32 matrices, else 8-bit blocks of that size."""

    def __init__(self, tensors: TensorFile, block_size: int | None) -> None:
        self.tensors = tensors
        self.block_size = block_size
        self.nodes: list[Any] = []

    def node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def linear(self, source: str, name: str, weights: FloatArray) -> str:
        """Multiply ``source`` [..., in] with ``weights`` [out, in]."""
        outputs, inputs = weights.shape
        if self.block_size is None:
            matrix = self.tensors.add(f"{name}.weight", np.ascontiguousarray(weights.T))
            return self.node("MatMul", [source, matrix], [f"{name}.out"])
        values, scales = quantize_blocks(weights, self.block_size)
        names = [self.tensors.add(f"{name}.weight", values), self.tensors.add(f"{name}.scales", scales)]
        return self._blocks(source, names, name, inputs, outputs)

    def _blocks(self, source: str, weights: list[str], name: str, inputs: int, outputs: int) -> str:
        return self.node(
            "MatMulNBits",
            [source, *weights],
            [f"{name}.out"],
            MICROSOFT,
            K=inputs,
            N=outputs,
            bits=8,
            block_size=self.block_size,
            accuracy_level=ACCURACY_LEVEL,
        )

    def embedding(self, weights: FloatArray, *, tied: bool) -> str:
        """Look ``input_ids`` up in ``weights`` [vocab, hidden]; return the states [B, S, hidden].

        ``tied`` stores what the head needs besides.
        """
        vocab, hidden = weights.shape
        if self.block_size is None:
            table = self.tensors.add("embedding.weight", weights)
            return self.node("Gather", [table, "input_ids"], ["embedding.out"])
        # Gathered as [vocab, blocks, block], the very tensor that the head multiplies with.
        values, scales = quantize_blocks(weights, self.block_size)
        self.tensors.add("embedding.weight", values)
        if tied:
            self.tensors.add("embedding.scales", scales)
        self.tensors.add("embedding.gather_scales", scales.reshape(vocab, -1, 1))
        gathered = self.node(
            "GatherBlockQuantized",
            ["embedding.weight", "input_ids", "embedding.gather_scales"],
            ["embedding.gathered"],
            MICROSOFT,
            bits=8,
            block_size=self.block_size,
            gather_axis=0,
            quantize_axis=2,
        )
        shape = self.tensors.add("embedding.shape", np.array([0, 0, hidden], dtype=np.int64))
        return self.node("Reshape", [gathered, shape], ["embedding.out"])

    def head(self, source: str, weights: FloatArray | None, config: DecoderConfig) -> None:
        """Write the logits of ``source`` [R, hidden]; ``weights`` None means tied to the embedding."""
        if weights is not None:
            logits = self.linear(source, "head", weights)
        elif self.block_size is None:
            logits = self.node("Gemm", [source, "embedding.weight"], ["head.out"], transB=1)
        else:
            shared = ["embedding.weight", "embedding.scales"]
            logits = self._blocks(source, shared, "head", config.hidden_size, config.vocab_size)
        self.node("Identity", [logits], ["logits"])

    def norm(
        self, residual: str, update: str, name: str, gamma: FloatArray, epsilon: float
    ) -> tuple[str, str]:
        """Add ``update`` to ``residual`` (if any) and RMS-normalise; return the normalised and the sum."""
        weight = self.tensors.add(f"{name}.weight", gamma)
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


def write_graph(weights: DecoderWeights, path: Path, block_size: int | None) -> None:
    """Write ``path`` and ``path`` + ``.data``: 8-bit blocks of ``block_size``, or float32 when it is None."""
    from onnx import TensorProto, helper

    config = weights.config
    with TensorFile(path.with_name(f"{path.name}.data")) as tensors:
        writer = GraphWriter(tensors, block_size)
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
    config, tensor = weights.config, weights.tensor
    for name, table in zip(("rotary.cos", "rotary.sin"), rotary_tables(config), strict=True):
        writer.tensors.add(name, table)
    residual, update = writer.embedding(tensor("embedding"), tied=config.tied), ""
    for layer in range(config.layers):
        name = f"layer.{layer}"
        states, residual = writer.norm(
            residual, update, f"{name}.attention_norm", tensor(f"{name}.attention_norm"), config.norm_epsilon
        )
        update = _attention(writer, weights, states, layer)
        states, residual = writer.norm(
            residual, update, f"{name}.mlp_norm", tensor(f"{name}.mlp_norm"), config.norm_epsilon
        )
        update = _mlp(writer, weights, states, name)
    states, _ = writer.norm(residual, update, "final_norm", tensor("final_norm"), config.norm_epsilon)
    shape = writer.tensors.add("rows.shape", np.array([-1, config.hidden_size], dtype=np.int64))
    rows = writer.node("Reshape", [states, shape], ["rows.flat"])
    wanted = writer.node("Gather", [rows, "out_index"], ["rows.wanted"])
    writer.head(wanted, None if config.tied else tensor("head"), config)


def _attention(writer: GraphWriter, weights: DecoderWeights, states: str, layer: int) -> str:
    config, tensor, name = weights.config, weights.tensor, f"layer.{layer}"
    packed = np.concatenate([tensor(f"{name}.{part}") for part in "qkv"])
    qkv = writer.linear(states, f"{name}.qkv", packed)
    if config.attention_bias:
        biases = np.concatenate([tensor(f"{name}.{part}_bias") for part in "qkv"])
        bias = writer.tensors.add(f"{name}.qkv.bias", biases)
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


def _mlp(writer: GraphWriter, weights: DecoderWeights, states: str, name: str) -> str:
    """SwiGLU with gate and up in one product: down(silu(gate) * up)."""
    fused = np.concatenate([weights.tensor(f"{name}.gate"), weights.tensor(f"{name}.up")])
    both = writer.linear(states, f"{name}.gate_up", fused)
    writer.node("Split", [both], [f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
    # QuickGelu with alpha 1 is x * sigmoid(x), SiLU, in one node.
    active = writer.node("QuickGelu", [f"{name}.gate"], [f"{name}.silu"], MICROSOFT, alpha=1.0)
    gated = writer.node("Mul", [active, f"{name}.up"], [f"{name}.gated"])
    return writer.linear(gated, f"{name}.down", weights.tensor(f"{name}.down"))
