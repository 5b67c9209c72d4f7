"""Shrink the default configuration of any transformers model, by the role of a field's name.

A field whose name says what it counts (layers, heads, widths, experts, tokens, positions, pixels)
gets a small value; equal defaults of one role stay equal, so that what must agree still agrees, and
the values of different roles share none, so that a wrong axis cannot hide. What the configuration
computes by itself is left to it. `variants` gives the candidates in order, the awkward first: the
caller builds and runs them and takes the first that works.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Variant", "variants"]


@dataclass(frozen=True)
class Variant:
    """One way to shrink: sizes by role. A tuple is dealt out to distinct defaults in order."""

    name: str
    heads: int = 6
    kv_heads: int = 2
    widths: tuple[int, ...] = (48, 72, 96, 120, 144, 168, 192, 216, 240, 264)
    inner: tuple[int, ...] = (80, 112, 136, 152, 176, 184, 208, 224)
    head_dim: int | None = 20
    uneven: tuple[int, ...] = (1, 2, 3, 4, 6)
    grow: bool = False
    fill: bool = False


EVEN = (64, 32, 128, 96, 160, 192, 224, 256, 288, 320)
BY_64 = (64, 128, 192, 256, 320, 384, 448, 512, 576, 640)

PLAIN = (
    Variant("awkward"),
    Variant("plain head size", head_dim=None),
    Variant("double head size", head_dim=16),
    Variant("four heads", heads=4, widths=EVEN, inner=(80, 112, 144, 176), head_dim=None),
    Variant("all heads alike", heads=4, kv_heads=4, widths=EVEN, head_dim=None),
    Variant("no smaller heads", heads=1 << 20, kv_heads=1 << 20, widths=BY_64, head_dim=None),
    Variant("awkward widths, some larger", grow=True),
    Variant("few widths", heads=4, kv_heads=4, widths=(64, 32), inner=(80, 112), head_dim=None),
)
# then with values for fields that have none
VARIANTS = (*PLAIN, *(replace(variant, fill=True) for variant in PLAIN))

VOCABULARY, POSITIONS, PIXELS, EXPERTS, LAYERS = 131, 64, 64, 4, 2
DOUBLED = ("num_filters", "encoder_hidden_size", "n_filters")  # at each downsampling
DEPTHWISE = 64
CODES = 128  # some codebooks are numbered by bits

# What a name says, the first that fits. A value is the most that a field may be; a callable
# decides by the variant; a text names the pool that the value is dealt from.
ROLES: tuple[tuple[str, Any], ...] = (
    (r"codebook_size$", CODES),
    (r"vocab_size$|^vocab|_vocab$|num_codevectors|num_embeddings$", VOCABULARY),
    (r"nextn|mtp_layers|num_mem_blocks|shared_experts$", 1),
    (r"first_k_dense|num_dense_layers|n_dense_layers", 1),
    (r"(^|_)n?_?layers?$|^depth$|_depth$|num_blocks$|_blocks$|^n_layer|num_stages$", LAYERS),
    (r"experts_per_tok|^top_k$|num_experts_per|moe_k$|moe_topk$|num_selected_experts", 2),
    (r"topk_group", 1),
    (r"(^|_)n_group$|num_expert_group|n_groups$|ngroups$|_groups$", 2),
    (r"experts$|n_expert$|num_local_experts", EXPERTS),
    (r"key_value|kv_heads|num_kv|multi_query_group|_key_heads|num_kv_", "kv_heads"),
    (r"_heads$|n_heads?$|num_heads?$|attention_heads|n_head$|_nheads$", "heads"),
    (r"q_lora_rank|query_lora", 36),
    (r"lora_rank|_rank$|low_rank|rank_dim|lora_.*dim|.*_lora$", 28),
    (r"rotary_dim$", 4),
    (r"nope_head_dim|qk_nope", 12),
    (r"rope_head_dim|qk_rope", 8),
    (r"v_head_dim|value_head_dim", 16),
    (r"head_dim$|^d_kv$|kv_channels|head_size$|^d_head$|attention_head_size", "head_dim"),
    (r"state_size|d_state|ssm_state", 10),
    (r"chunk_size|chunk_length|block_size|window_size$|^sliding_window$|attention_window", 4),
    (r"intermediate|ffn|mlp_(hidden|dim)|inner_(dim|size)|feed_?forward|^n_inner|d_inner|^d_ff$"
     r"|expert_(dim|size)|mlp_size", "inner"),
    (r"image_size|input_size$|^img_size|crop_size", PIXELS),
    (r"position|n_ctx|max_seq|seq_len|context_length|max_length|n_positions|max_source|max_target"
     r"|block_length", POSITIONS),
    (r"num_queries|num_query|query_num|_tokens$|num_latents|num_labels_", 10),
    (r"hidden|embed|dim$|dims$|channel_list|width|d_model|d_embed|n_embd|channels$|hidden_size"
     r"|embedding|_size$|features$|planes|filters|^d_|_channels", "widths"),
)  # fmt: skip

# Names that say size but are a kernel's, a number of colours or of classes, or a factor.
LEFT = re.compile(
    r"kernel|stride|patch|padding|dilation|num_labels|pad_|num_channels|^in_channels$|in_chans"
    r"|merge_size|temporal|downsample|upsample|scale|factor|ratio|multiplier|type_vocab"
    r"|batch|pool|conv_pos|relative|bucket|version|num_mel|sampling|rate|feature_size|frame"
    r"|conv_size|d_conv|num_codebooks|use_|input_channels|out_features|out_indices"
    r"|max_window_layers|layer_norm|interval|freq|^num_channel"
)
TOKEN = re.compile(r"_token_id$|_token_index$|_token_ids$|_id$|_index$|token$|_ids$")


Changes = dict[tuple[str, ...], Any]
"""New values by the path of a field through nested configurations."""


def variants(config: Any, exceptions: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """Configurations of the same class, small ones, the awkward first.

    After the variants come repairs of the first one: one change left out at a time. `exceptions`
    holds values by dotted path that cannot be found blindly.
    """
    fixed = {tuple(path.split(".")): value for path, value in (exceptions or {}).items()}
    whole = [_with(changes(config, variant, _Pools(variant)), fixed) for variant in VARIANTS]
    for found in whole:
        yield from _built(config, found)
    for found in whole[:2]:
        for path in found:
            yield from _built(config, {k: v for k, v in found.items() if k != path})


def _with(found: Changes, fixed: Changes) -> Changes:
    """Changes with some that are given, which stand for all below them."""
    rest = {k: v for k, v in found.items() if not any(k[: len(f)] == f for f in fixed)}
    return rest | fixed


def _built(config: Any, found: Changes) -> Iterator[Any]:
    try:
        yield _sections(build(config, found), config, found)
    except Exception:  # a configuration checks its own fields, and raises what it likes
        return


def build(config: Any, found: Changes) -> Any:
    """A configuration of the same class with other values."""
    here = {path[0]: value for path, value in found.items() if len(path) == 1}
    for name in dict.fromkeys(path[0] for path in found if len(path) > 1):
        inner = {path[1:]: value for path, value in found.items() if path[0] == name and path[1:]}
        here[name] = build(_value(config, name), inner)
    return type(config)(**(_given(config) | here))


def _given(config: Any) -> dict[str, Any]:
    """What whoever made a nested configuration asked for: plain values unlike the class's own."""
    own = type(config)().to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, bool | int | float | str | list)
        and value != own.get(name)
        and name not in ("model_type", "stage_names")
    }


def _sections(small: Any, config: Any, found: Changes) -> Any:
    """Rotary sections must add up to half of a head, which is known once the sizes are."""
    again = {}
    for path, held in _nested(small, ()):
        rope = _value(held, "rope_parameters")
        optional = "mrope_section" in getattr(held, "ignore_keys_at_rope_validation", ())
        if not isinstance(rope, dict) or not (optional or "mrope_section" in rope):
            continue
        heads = _value(held, "num_attention_heads") or 1
        width = _value(held, "head_dim") or held.hidden_size // heads
        half = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
        parts = len(rope.get("mrope_section") or (0, 0, 0))
        first = half - (parts - 1) * (half // parts)
        sections = [first, *[half // parts] * (parts - 1)]
        again[(*path, "rope_parameters")] = {**rope, "mrope_section": sections}
    return build(config, found | again) if again else small


def _nested(config: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, config
    for field_ in _fields(config):
        value = _value(config, field_.name)
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _nested(value, (*path, field_.name))


def _value(config: Any, name: str) -> Any:
    """A field; configurations that differ by layer refuse to give some of theirs."""
    try:
        return getattr(config, name, None)
    except Exception:
        return vars(config).get(name)


class _Pools:
    """Deals values out: one for each distinct default of a role."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.dealt: dict[str, dict[int, int]] = {}

    def deal(self, pool: str, default: int) -> int:
        values: tuple[int, ...] = getattr(self.variant, pool)
        dealt = self.dealt.setdefault(pool, {})
        if default not in dealt:
            dealt[default] = values[min(len(dealt), len(values) - 1)]
        return min(dealt[default], 2 * default if self.variant.grow else default)


def changes(config: Any, variant: Variant, pools: _Pools) -> Changes:
    """The small values of a configuration; nested ones are shrunk with the same pools."""
    found: Changes = {}
    computed = {f.name for f in _fields(config) if f.default is None}
    names = [f.name for f in _fields(config)]
    steps = len(_value(config, "downsampling_ratios") or ())
    depth = next((v for n in names if (v := _depth(config, n))), None)
    for name in names:
        value = _value(config, name)
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            inner = changes(value, variant, pools)
            found |= {(name, *path): small for path, small in inner.items()}
            continue
        if name == "num_encoder_blocks":  # stages, for each of which lists have a size
            continue
        small = _small(name, value, depth, pools, own=name in computed)
        if steps and name in DOUBLED:
            small = max(3, 96 >> steps)
        if small is not None and small != value:
            found[name,] = small
    return _deep_enough(found, config, names)


def _small(name: str, value: Any, depth: int | None, pools: _Pools, own: bool) -> Any:
    """A small value for a field, or None where it stays as it is."""
    if isinstance(value, bool | str | float | dict):
        return None
    if value is None:
        return _number(name, 1 << 30, pools, own=False) if pools.variant.fill else None
    if isinstance(value, list | tuple):
        return _list(name, value, depth, pools)
    return _number(name, value, pools, own) if isinstance(value, int) else None


def _fields(config: Any) -> list[dataclasses.Field[Any]]:
    base = {"transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype"}
    base |= {"chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id"}
    return [f for f in dataclasses.fields(config) if f.init and f.name not in base]


def _depth(config: Any, name: str) -> int | None:
    value = _value(config, name)
    if not re.search(r"num_hidden_layers$|^n_layers?$|^num_layers$|^depth$|^encoder_layers$", name):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(name: str, value: int, pools: _Pools, own: bool) -> int | None:
    """A small value for a field; `own` says that the configuration would compute it itself."""
    if TOKEN.search(name):
        return _token(value) if value >= VOCABULARY else None
    by_width = _by_width(name, value, pools)
    if by_width is not None:
        return by_width
    if LEFT.search(name) or value < 2:
        return _patch(name, value)
    role = next((role for pattern, role in ROLES if re.search(pattern, name)), None)
    return None if role is None else _by_role(role, value, pools, own)


def _by_role(role: int | str, value: int, pools: _Pools, own: bool) -> int | None:
    if own and role not in ("kv_heads", "head_dim"):
        return None
    if isinstance(role, int):
        return min(value, role)
    if role == "heads":
        return min(value, pools.variant.heads)
    if role == "kv_heads":
        return min(value, pools.variant.kv_heads)
    if role == "head_dim":
        wide = pools.variant.head_dim
        return (wide if own else min(wide or 8, value)) if wide or not own else None
    return pools.deal(role, value)


def _by_width(name: str, value: int, pools: _Pools) -> int | None:
    """What follows from a width that the configuration has elsewhere."""
    if name.endswith("_groups") and value >= DEPTHWISE:  # as many groups as channels
        return pools.deal("widths", value)
    if name.endswith("num_pos_feats"):  # half a width for each of two directions
        return pools.deal("widths", 2 * value) // 2
    return None


def _patch(name: str, value: int) -> int | None:
    if name == "patch_size" and value > 8:
        return 16 if value % 14 else 14
    if re.search(r"conv_pos_embeddings$|max_relative", name) and value > 16:
        return 16
    if name.endswith(("conv_pos_embedding_groups", "conv_pos_groups")):
        return 4
    return None


def _token(value: int) -> int:
    """Special tokens stay apart from one another."""
    return 100 + value % 29


def _list(name: str, value: Any, depth: int | None, pools: _Pools) -> Any | None:
    """Lists by layer are cut so that every kind occurs; lists of sizes are shrunk one by one."""
    items = list(value)
    if name.endswith("feature_sizes") and all(isinstance(v, list | tuple) for v in items):
        return _maps(items)
    if not items or any(isinstance(v, dict | list | tuple) for v in items):
        return None
    if TOKEN.search(name) and all(isinstance(v, int) for v in items):
        return [_token(v) if v >= VOCABULARY else v for v in items]
    if depth is not None and len(items) == depth and depth > LAYERS:
        return type(value)(_by_layer(items))
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in items):
        return None
    if "attention_blocks" in name:  # the numbers of some blocks
        return None
    if re.search(r"depths$|^depths|layers|num_blocks|blocks$|blocks_per|block_repeats", name):
        return type(value)([min(items[0], 2), *(min(v, 1) for v in items[1:])])
    if re.search(r"_heads|num_heads", name):
        steps = pools.variant.uneven
        return type(value)(1 if v == 1 else steps[min(i + 1, 4)] for i, v in enumerate(items))
    smaller = [_number(name, v, pools, own=False) for v in items]
    return type(value)(v if s is None else s for v, s in zip(items, smaller, strict=True))


def _maps(items: list[Any]) -> list[Any]:
    """Sizes of maps of an image of a thousand pixels, the smallest by patches of 16."""
    smallest = min(min(sizes) for sizes in items)
    return [[size * PIXELS // 16 // smallest for size in sizes] for sizes in items]


def _by_layer(items: list[Any]) -> list[Any]:
    kinds = list(dict.fromkeys(items))
    return [kinds[i % len(kinds)] for i in range(max(LAYERS, len(kinds)))]


def _deep_enough(found: Changes, config: Any, names: list[str]) -> Changes:
    """As many layers as there are kinds of them."""
    cut = [len(found[n,]) for n in ("layer_types", "layers_block_type") if (n,) in found]
    for name in names:
        if cut and _depth(config, name):
            found[name,] = max(cut)
    return found
