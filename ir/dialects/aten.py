"""The `aten` dialect: one line an operation where a signature says it all.

To add a rule, put a line in `SIGNATURES` (einops notation, see `ir/signature.py`). Operations
whose types depend on their arguments have a short function in one of the `aten_*.py`.
Overloads share the line of their base name unless they have one of their own.
"""

from __future__ import annotations

from prunec.ir.dialects import aten_complex as complex_
from prunec.ir.dialects import aten_contract as contract
from prunec.ir.dialects import aten_entries as entries
from prunec.ir.dialects import aten_parts as parts
from prunec.ir.dialects import aten_select as select
from prunec.ir.dialects import aten_shapes as shapes
from prunec.ir.dialects import aten_windows as windows
from prunec.ir.infer import Dialect, Rule

__all__ = ["ATEN", "RULES", "SIGNATURES"]

SIGNATURES: dict[str, str] = {
    # contractions
    "aten.linear": "... i, o i, o -> ... o",
    "aten.mm": "n i, i o -> n o",
    "aten.bmm": "b n i, b i o -> b n o",
    "aten.mv": "n i, i -> n",
    "aten.dot": "i, i ->",
    "aten.outer": "i, j -> i j",
    "aten.bilinear": "... i, ... j, o i j, o -> ... o",
    "aten.cdist": "... n i, ... m i -> ... n m",
    "aten.embedding": "v d, ... -> ... d | index v",
    # spatial operations leave batch and channel alone
    "aten.max_pool1d": "... c _ -> ... c _",
    "aten.avg_pool1d": "... c _ -> ... c _",
    "aten.adaptive_avg_pool1d": "... c _ -> ... c _",
    "aten.adaptive_max_pool1d": "... c _ -> ... c _, ... c _",
    "aten.max_pool2d": "... c _ _ -> ... c _ _",
    "aten.avg_pool2d": "... c _ _ -> ... c _ _",
    "aten.adaptive_avg_pool2d": "... c _ _ -> ... c _ _",
    "aten.adaptive_max_pool2d": "... c _ _ -> ... c _ _, ... c _ _",
    "aten.max_pool3d": "... c _ _ _ -> ... c _ _ _",
    "aten.avg_pool3d": "... c _ _ _ -> ... c _ _ _",
    "aten.max_pool2d_with_indices": "... c _ _ -> ... c _ _, ... c _ _",
    "aten.grid_sampler": "b c _ _, b _ _ _ -> b c _ _",
    "aten.grid_sampler_2d": "b c _ _, b _ _ _ -> b c _ _",
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
        shapes.reshape,
    ),
    **dict.fromkeys(
        (
            "aten.to aten._to_copy aten.clone aten.contiguous aten.detach aten.alias aten.type_as "
            "aten.dropout aten.feature_dropout aten.lift_fresh_copy aten.fill aten.zeros_like "
            "aten.ones_like aten.full_like aten.empty_like aten.rand_like aten.randn_like "
            "aten.bernoulli aten.nan_to_num aten.bucketize aten.resolve_conj aten.resolve_neg"
        ).split(),
        entries.same,
    ),
    **dict.fromkeys(
        ("aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.scalar_tensor"), entries.filled
    ),
    **dict.fromkeys(
        ("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty"), entries.new_filled
    ),
    **dict.fromkeys(
        ("aten.arange", "aten.linspace", "aten.eye", "aten.rand", "aten.randn"), entries.numbered
    ),
    **dict.fromkeys(
        (
            "aten.log_softmax aten._log_softmax aten.cumsum "
            "aten.cumprod aten.logcumsumexp aten.argsort aten._safe_softmax"
        ).split(),
        entries.along_first,
    ),
    **dict.fromkeys(("aten.sort", "aten.cummax", "aten.cummin"), entries.sort),
    **dict.fromkeys(("aten.softmax", "aten._softmax"), entries.softmax),
    "aten.topk": entries.topk,
    **dict.fromkeys(("aten.roll", "aten.flip"), entries.moved_within),
    **dict.fromkeys(("aten.triu", "aten.tril"), entries.triangle),
    **dict.fromkeys(("aten.sum", "aten.nansum", "aten.count_nonzero"), entries.reduction()),
    **dict.fromkeys(
        ("aten.mean", "aten.var", "aten.std", "aten.var_mean", "aten.std_mean"),
        entries.reduction("norm"),
    ),
    **dict.fromkeys(
        (
            "aten.amax aten.amin aten.max aten.min aten.argmax aten.argmin aten.prod "
            "aten.logsumexp aten.any aten.all aten.median"
        ).split(),
        entries.reduction("pin"),
    ),
    **dict.fromkeys(("aten.linalg_vector_norm", "aten.norm"), entries.vector_norm),
    "aten.layer_norm": entries.layer_norm,
    "aten.rms_norm": entries.rms_norm,
    **dict.fromkeys(
        ("aten.batch_norm", "aten.instance_norm", "aten._native_batch_norm_legit_no_training"),
        entries.channel_norm,
    ),
    "aten.group_norm": entries.group_norm,
    "aten._weight_norm": entries.weight_norm,
    **dict.fromkeys(
        ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"), contract.convolution
    ),
    **dict.fromkeys(
        ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"),
        contract.transposed_convolution,
    ),
    **dict.fromkeys(("aten.addmm", "aten.baddbmm"), contract.addmm),
    "aten.matmul": contract.matmul,
    "aten.einsum": contract.einsum,
    "aten.scaled_dot_product_attention": contract.attention,
    "aten.expand": shapes.expand,
    "aten.reshape_as": shapes.reshape_as,
    "aten.expand_as": shapes.expand_as,
    **dict.fromkeys(("aten.repeat", "aten.tile"), shapes.repeat),
    "aten.repeat_interleave": shapes.repeat_interleave,
    "aten.unsqueeze": shapes.unsqueeze,
    "aten.squeeze": shapes.squeeze,
    "aten.permute": shapes.permute,
    **dict.fromkeys(("aten.transpose", "aten.swapaxes"), shapes.transpose),
    **dict.fromkeys(("aten.t", "aten.mT"), shapes.swap_last),
    "aten.numpy_T": shapes.reversed_dims,
    "aten.movedim": shapes.movedim,
    "aten.select": parts.select,
    "aten.unbind": parts.unbind,
    "aten.slice": parts.slice_,
    "aten.select_scatter": parts.select_scatter,
    "aten.slice_scatter": parts.slice_scatter,
    "aten.narrow": parts.narrow,
    **dict.fromkeys(
        ("aten.split", "aten.chunk", "aten.split_with_sizes", "aten.tensor_split"), parts.split
    ),
    "aten.cat": parts.cat,
    "aten.stack": parts.stack,
    "aten.glu": parts.glu,
    "aten.index": select.index,
    "aten.index_select": select.index_select,
    "aten.gather": select.gather,
    **dict.fromkeys(("aten.scatter", "aten.scatter_add", "aten.scatter_reduce"), select.scatter),
    "aten.index_put": select.index_put,
    "aten.one_hot": select.one_hot,
    "aten.masked_scatter": select.masked_scatter,
    **dict.fromkeys(("aten.index_add", "aten.index_copy", "aten.index_fill"), select.index_write),
    "aten.diag_embed": select.diagonals,
    **dict.fromkeys(("aten.pad", "aten.constant_pad_nd"), parts.pad),
    "aten.pixel_shuffle": windows.pixel_shuffle,
    "aten.pixel_unshuffle": windows.pixel_unshuffle,
    "aten.unfold": windows.unfold,
    **dict.fromkeys(
        ("aten.channel_shuffle", "aten.native_channel_shuffle"), windows.channel_shuffle
    ),
    "aten.view_as_complex": complex_.view_as_complex,
    "aten.view_as_real": complex_.view_as_real,
    **dict.fromkeys(
        (
            "aten.fft_fft aten.fft_ifft aten.fft_rfft aten.fft_irfft aten.fft_hfft aten.fft_ihfft"
        ).split(),
        complex_.fourier,
    ),
    **dict.fromkeys(
        (
            "aten.fft_fft2 aten.fft_ifft2 aten.fft_rfft2 aten.fft_irfft2 "
            "aten.fft_fftn aten.fft_ifftn aten.fft_rfftn aten.fft_irfftn"
        ).split(),
        complex_.fourier_of_many,
    ),
    **dict.fromkeys(("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"), entries.recurrent),
    "aten.cosine_similarity": entries.similarity,
    "aten.im2col": windows.im2col,
    "aten.prelu": entries.prelu,
    "aten.copy": entries.copy,
}

# pointwise, though torch does not tag them so, or named like a reduction
RULES |= dict.fromkeys(
    (
        "aten.where aten.masked_fill aten._prelu_kernel aten.max.other aten.min.other "
        "aten.hardswish aten.log_sigmoid aten.rsub aten.floor_divide aten.complex aten.polar "
        "aten.real aten.imag aten.conj aten.special_expm1 aten.special_erf aten.special_log1p "
        "aten.special_logit"
    ).split(),
    entries.pointwise,
)

LAYOUTS = frozenset(
    (
        "aten.view aten.reshape aten._unsafe_view aten.flatten aten.unflatten aten.to "
        "aten._to_copy aten.clone aten.contiguous aten.detach aten.alias aten.unsqueeze "
        "aten.squeeze aten.expand aten.permute aten.transpose aten.t aten.repeat_interleave "
        "aten.slice aten.select aten.narrow aten.split aten.chunk aten.unbind"
    ).split()
)

ATEN = Dialect(SIGNATURES, RULES, entries.pointwise, LAYOUTS)
