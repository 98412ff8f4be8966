"""The reference forward pass of a Llama-style decoder (Llama or Qwen2), in torch. Run by the export environment.

``python reference_model.py FOLDER``: reads ``config.json``, ``tokens.npy`` (int64 [n]) and one float32
``.npy`` per tensor, and writes ``logits.npy`` (float32 [n, vocab]), every position predicted within its
window. Nothing of the project is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    """Run the model over the tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    given = json.loads((folder / "config.json").read_text())
    window = given.pop("window")
    model: Any
    if given.pop("attention_bias"):
        model = Qwen2ForCausalLM(Qwen2Config(**given, attn_implementation="eager"))
    else:
        model = LlamaForCausalLM(LlamaConfig(**given, attn_implementation="eager"))
    missing, unexpected = model.load_state_dict(state(folder, torch), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied to the embedding
    model.tie_weights()
    model.eval()
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    with torch.inference_mode():
        rows = [
            model(tokens[None, start : start + window]).logits[0] for start in range(0, len(tokens), window)
        ]
    np.save(folder / "logits.npy", torch.cat(rows).float().numpy())


def state(folder: Path, torch: Any) -> dict[str, Any]:
    """Return the state dict under Hugging Face's names, which both architectures have in common."""
    names = {
        "embedding": "model.embed_tokens.weight",
        "head": "lm_head.weight",
        "final_norm": "model.norm.weight",
        "attention_norm": "input_layernorm.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "q_bias": "self_attn.q_proj.bias",
        "k_bias": "self_attn.k_proj.bias",
        "v_bias": "self_attn.v_proj.bias",
        "o": "self_attn.o_proj.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
    }
    found = {}
    for path in folder.glob("tensor.*.npy"):
        *place, part = path.name.removeprefix("tensor.").removesuffix(".npy").split(".")
        prefix = f"model.layers.{place[1]}." if place else ""
        found[prefix + names[part]] = torch.from_numpy(np.load(path))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
