"""The `aten` dialect: one line an operation where a signature says it all.

To add a rule, put a line in `SIGNATURES` (einops notation, see `ir/signature.py`). Operations
whose types depend on their arguments have a short function in `aten_rules.py`.
Overloads share the line of their base name unless they have one of their own.
"""

from __future__ import annotations

from prunec.ir.dialects import aten_rules as rules
from prunec.ir.infer import Dialect, Rule

__all__ = ["ATEN", "RULES", "SIGNATURES"]

SIGNATURES: dict[str, str] = {
    # contractions
    "aten.linear": "... i, o i, o -> ... o",
    "aten.mm": "n i, i o -> n o",
    "aten.bmm": "b n i, b i o -> b n o",
    "aten.addmm": "... o, n i, i o -> n o",
    "aten.baddbmm": "... o, b n i, b i o -> b n o",
    "aten.mv": "n i, i -> n",
    "aten.dot": "i, i ->",
    "aten.outer": "i, j -> i j",
    "aten.embedding": "v d, ... -> ... d | index v",
    # per-channel statistics are stored, so batch norm in evaluation mode is pointwise
    "aten.batch_norm": "b c ..., c, c, c, c -> b c ...",
    "aten._native_batch_norm_legit_no_training": "b c ..., c, c, c, c -> b c ...",
    "aten.instance_norm": "b c ..., c, c, c, c -> b c ...",
    # spatial operations leave batch and channel alone
    "aten.max_pool1d": "... c _ -> ... c _",
    "aten.avg_pool1d": "... c _ -> ... c _",
    "aten.adaptive_avg_pool1d": "... c _ -> ... c _",
    "aten.adaptive_max_pool1d": "... c _ -> ... c _",
    "aten.max_pool2d": "... c _ _ -> ... c _ _",
    "aten.avg_pool2d": "... c _ _ -> ... c _ _",
    "aten.adaptive_avg_pool2d": "... c _ _ -> ... c _ _",
    "aten.adaptive_max_pool2d": "... c _ _ -> ... c _ _",
    "aten.max_pool3d": "... c _ _ _ -> ... c _ _ _",
    "aten.avg_pool3d": "... c _ _ _ -> ... c _ _ _",
    "aten.adaptive_avg_pool3d": "... c _ _ _ -> ... c _ _ _",
    "aten.upsample_nearest1d": "... c _ -> ... c _",
    "aten.upsample_linear1d": "... c _ -> ... c _",
    "aten.upsample_nearest2d": "... c _ _ -> ... c _ _",
    "aten.upsample_bilinear2d": "... c _ _ -> ... c _ _",
    "aten.upsample_bicubic2d": "... c _ _ -> ... c _ _",
    "aten.upsample_nearest3d": "... c _ _ _ -> ... c _ _ _",
    "aten.upsample_trilinear3d": "... c _ _ _ -> ... c _ _ _",
    "aten.reflection_pad1d": "... _ -> ... _",
    "aten.replication_pad1d": "... _ -> ... _",
    "aten.reflection_pad2d": "... _ _ -> ... _ _",
    "aten.replication_pad2d": "... _ _ -> ... _ _",
}

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten"),
        rules.reshape,
    ),
    **dict.fromkeys(
        (
            "aten.to aten._to_copy aten.clone aten.contiguous aten.detach aten.alias aten.type_as "
            "aten.dropout aten.feature_dropout aten.lift_fresh_copy aten.fill aten.zeros_like "
            "aten.ones_like aten.full_like aten.empty_like aten.rand_like aten.randn_like "
            "aten.bernoulli aten.float aten.half aten.nan_to_num"
        ).split(),
        rules.same,
    ),
    **dict.fromkeys(
        ("aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.scalar_tensor"), rules.filled
    ),
    **dict.fromkeys(("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty"),
                    rules.new_filled),
    **dict.fromkeys(("aten.arange", "aten.linspace", "aten.eye", "aten.rand", "aten.randn"),
                    rules.numbered),
    **dict.fromkeys(
        (
            "aten.softmax aten._softmax aten.log_softmax aten._log_softmax aten.cumsum "
            "aten.cumprod aten.logcumsumexp aten.argsort aten._safe_softmax"
        ).split(),
        rules.along_first,
    ),
    **dict.fromkeys(("aten.sort", "aten.cummax", "aten.cummin"), rules.sort),
    "aten.topk": rules.topk,
    **dict.fromkeys(("aten.roll", "aten.flip"), rules.moved_within),
    **dict.fromkeys(("aten.triu", "aten.tril"), rules.triangle),
    **dict.fromkeys(("aten.sum", "aten.nansum", "aten.count_nonzero"), rules.reduction()),
    **dict.fromkeys(("aten.mean", "aten.var", "aten.std", "aten.var_mean", "aten.std_mean"),
                    rules.reduction("norm")),
    **dict.fromkeys(
        (
            "aten.amax aten.amin aten.max aten.min aten.argmax aten.argmin aten.prod "
            "aten.logsumexp aten.any aten.all aten.median"
        ).split(),
        rules.reduction("pin"),
    ),
    **dict.fromkeys(("aten.linalg_vector_norm", "aten.norm"), rules.vector_norm),
    "aten.layer_norm": rules.layer_norm,
    "aten.rms_norm": rules.rms_norm,
    "aten.group_norm": rules.group_norm,
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"),
                    rules.convolution),
    **dict.fromkeys(
        ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"),
        rules.transposed_convolution,
    ),
    "aten.matmul": rules.matmul,
    "aten.einsum": rules.einsum,
    "aten.scaled_dot_product_attention": rules.attention,
    "aten.expand": rules.expand,
    "aten.expand_as": rules.expand_as,
    "aten.repeat": rules.repeat,
    "aten.repeat_interleave": rules.repeat_interleave,
    "aten.unsqueeze": rules.unsqueeze,
    "aten.squeeze": rules.squeeze,
    "aten.permute": rules.permute,
    **dict.fromkeys(("aten.transpose", "aten.swapaxes"), rules.transpose),
    **dict.fromkeys(("aten.t", "aten.numpy_T", "aten.mT"), rules.swap_last),
    "aten.movedim": rules.movedim,
    "aten.select": rules.select,
    "aten.unbind": rules.unbind,
    "aten.slice": rules.slice_,
    "aten.narrow": rules.narrow,
    **dict.fromkeys(("aten.split", "aten.chunk", "aten.split_with_sizes", "aten.tensor_split"),
                    rules.split),
    "aten.cat": rules.cat,
    "aten.stack": rules.stack,
    "aten.glu": rules.glu,
    "aten.index": rules.index,
    "aten.index_select": rules.index_select,
    "aten.gather": rules.gather,
    **dict.fromkeys(("aten.scatter", "aten.scatter_add", "aten.scatter_reduce"), rules.scatter),
    "aten.index_put": rules.index_put,
    "aten.one_hot": rules.one_hot,
    **dict.fromkeys(("aten.pad", "aten.constant_pad_nd"), rules.pad),
    "aten.pixel_shuffle": rules.pixel_shuffle,
    "aten.pixel_unshuffle": rules.pixel_unshuffle,
    "aten.prelu": rules.prelu,
    "aten.copy": rules.copy,
}

# pointwise, though torch does not tag them so
RULES |= dict.fromkeys(("aten.where", "aten.masked_fill", "aten.prelu_kernel"), rules.pointwise)

ATEN = Dialect(SIGNATURES, RULES, rules.pointwise)
