"""Turn decoder weights into a pack's files: the graphs, the tokenizer, the chat template, the measured quality."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from appliance.packs.manifest import Decoder, Profile, ProfileName
from model_packs.build import PackParts
from model_packs.decoder.graph import GraphForm, write_graph
from model_packs.decoder.profiles import FLOAT, exact_form, throughput_form
from model_packs.decoder.quality import measure, sample_tokens
from model_packs.decoder.quantize import Bits
from model_packs.decoder.tensor_file import Stored
from model_packs.decoder.weights import DecoderConfig, DecoderWeights, parameter_count
from model_packs.errors import BuildError, RecipeError
from model_packs.progress import say
from model_packs.recipe import Recipe

GRAPHS: dict[ProfileName, str] = {"exact": "model.onnx", "throughput": "throughput.onnx"}
CHAT_TEMPLATE = "chat_template.jinja"
TEMPLATES = Path(__file__).parents[1] / "templates"
SESSION_BYTES = 40_000_000
# What makes a graph exact; these limits must hold wherever the profile "exact" is served.
EXACT_METRICS = ("kl_divergence", "perplexity")


class DecoderOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[options]`` of a decoder recipe.

    ``context_length`` caps the model's own; ``bits`` and ``block_size`` are those of the exact graph's
    blocks (4 bits from float sources only); ``throughput`` adds the profile "throughput", and
    ``throughput_is_exact`` offers its graph to the profile "exact" too; ``chat_template`` names one of
    ``model_packs/templates`` to take instead of the source's own; ``tool_format`` is the tool-call
    format that the chat template writes.
    """

    context_length: Annotated[int, msgspec.Meta(ge=64)] | None = None
    bits: Bits = 8
    block_size: Literal[16, 32, 64, 128] = 32
    throughput: bool = False
    throughput_is_exact: bool = False
    chat_template: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]*\Z", max_length=64)] | None = None
    tool_format: Literal["none", "hermes", "llama3-json"] = "none"


def decoder_options(recipe: Recipe) -> DecoderOptions:
    """Return the recipe's options, checked against each other and its limits. Raises RecipeError."""
    try:
        options = msgspec.convert(recipe.options, DecoderOptions)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{recipe.name}: options: {error}") from error
    if options.chat_template is not None and not _template(options.chat_template).is_file():
        raise RecipeError(f"{recipe.name}: options: there is no chat template {options.chat_template!r}")
    limits = recipe.profile_quality.get("throughput", {})
    if options.throughput and not limits:
        raise RecipeError(
            f"{recipe.name}: the profile throughput quantises, so [profile_quality.throughput] must limit a figure"
        )
    if options.throughput_is_exact:
        if not options.throughput:
            raise RecipeError(f"{recipe.name}: options: throughput_is_exact needs throughput")
        for metric in EXACT_METRICS:
            if limits.get(metric) != recipe.quality.get(metric):
                raise RecipeError(
                    f"{recipe.name}: options: throughput_is_exact serves the profile exact, so the limit of"
                    f" {metric} must be the same for both"
                )
    return options


def write_decoder(weights: DecoderWeights, options: DecoderOptions, out: Path) -> PackParts:
    """Write the pack's files into ``out`` and measure the graphs against their float twin.

    Raises RecipeError when ``options`` ask for 4 bits of weights that are quantised already, BuildError
    when the weights cannot be expressed or do not fit each other.
    """
    config = weights.config
    if options.bits == 4 and not weights.float_source:
        raise RecipeError(
            "options: bits = 4 needs a source with float weights: this one is quantised already, and"
            " rounding its values onto another 4-bit grid loses far more than either alone"
        )
    (out / "tokenizer.json").write_text(weights.tokenizer, encoding="utf-8")
    template = weights.chat_template
    if options.chat_template is not None:
        template = _template(options.chat_template).read_text(encoding="utf-8")
    if template is not None:
        (out / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    tokens = sample_tokens(weights.tokenizer)
    if max(tokens) >= config.vocab_size:
        raise BuildError("the tokenizer has tokens that the model does not know")
    graphs = _write_graphs(weights, options, out)
    # The float twin is four times as large as the pack and only needed to measure.
    with tempfile.TemporaryDirectory(dir=out, prefix=".float-") as folder:
        started = time.monotonic()
        reference = Path(folder) / GRAPHS["exact"]
        write_graph(weights, reference, FLOAT)
        quality = measure(graphs, reference, config, tokens, "model_packs/samples/english.txt")
        say(f"  quality measured against the float graph ({time.monotonic() - started:.1f} s)")
    return PackParts(
        decoder=Decoder(
            graph=GRAPHS["exact"],
            profiles=_profiles(options),
            chat_template=CHAT_TEMPLATE if template is not None else None,
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            eos_token_ids=weights.eos_token_ids,
            bos_token=weights.bos_token,
            eos_token=weights.eos_token,
            tool_format=options.tool_format,
        ),
        context_length=config.context_length,
        memory_bytes=_memory(config, out),
        parameters=parameter_count(config),
        quality=quality,
    )


def _template(name: str) -> Path:
    return TEMPLATES / f"{name}.jinja"


def _write_graphs(weights: DecoderWeights, options: DecoderOptions, out: Path) -> dict[ProfileName, Path]:
    """Write the graph of every profile and return them; what they have in common is stored once."""
    forms: dict[ProfileName, GraphForm] = {"exact": exact_form(options.block_size, options.bits)}
    if options.throughput:
        forms["throughput"] = throughput_form(options.block_size, weights.config.hidden_size)
    stored: Stored = {}
    graphs: dict[ProfileName, Path] = {}
    for profile, name in GRAPHS.items():
        if profile in forms:
            started = time.monotonic()
            graphs[profile] = out / name
            write_graph(weights, graphs[profile], forms[profile], stored)
            say(f"  graph of the profile {profile} written ({time.monotonic() - started:.1f} s)")
    return graphs


def _profiles(options: DecoderOptions) -> list[Profile]:
    if not options.throughput:
        return []
    fast = Profile(name="throughput", graph=GRAPHS["throughput"])
    if not options.throughput_is_exact:
        return [fast]
    return [Profile(name="exact", graph=GRAPHS["exact"], alternative=fast.graph), fast]


def _memory(config: DecoderConfig, out: Path) -> int:
    """Return what the loaded model keeps resident, with the larger of its graphs.

    A graph has its matrices, packed for the kernels, a packed copy of the shared head, and its session.
    Measured with ONNX Runtime 1.31 over an empty process: 226 MB for a graph of 154 MB, and 193 MB for
    the throughput graph of 108 MB.
    """
    weights = (out / f"{GRAPHS['exact']}.data").stat().st_size
    return weights + config.vocab_size * config.hidden_size + SESSION_BYTES
