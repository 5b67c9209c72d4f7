"""What models of transformers need for being traced, whichever they are.

Everything is undone when the trace ends: the model is left as it was found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import Cache, PreTrainedModel, masking_utils
from transformers.exporters import exporter_dynamo  # noqa: F401  fills the table of patches
from transformers.exporters.utils import _PATCHES, apply_patches
from transformers.utils.generic import ModelOutput

__all__ = [
    "answered",
    "batched_experts",
    "configs_of",
    "eager_attention",
    "every_hit",
    "traceable",
]

DYNAMO, MODELS = "dynamo", "transformers.models."


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Within the block the model can be traced as well as its code allows."""
    with ExitStack() as within:
        within.enter_context(_plain_outputs(model))
        within.enter_context(_without_caches(model))
        within.enter_context(batched_experts(model))
        within.enter_context(_patches())
        within.enter_context(_no_empty_masks())
        within.enter_context(_overlapping_windows())
        yield


# What every configuration says while tracing: named outputs, and none but the plain ones.
_SETTINGS = {
    "use_cache": False,
    "use_mems_eval": False,
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
}


@contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """Within the block all configurations say the same, also the copies that submodules hold."""
    saved = [
        (c, field, vars(c)[field]) for c in _held(model) for field in _SETTINGS if field in vars(c)
    ]
    try:
        for c, field, _ in saved:
            setattr(c, field, _SETTINGS[field])
        yield
    finally:
        for c, field, value in saved:
            setattr(c, field, value)


@contextmanager
def _without_caches(model: nn.Module) -> Iterator[None]:
    """Within the block no output holds a cache, whatever the configuration says of caches."""

    def without(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, ModelOutput):
            return output
        return type(output)(**{k: v for k, v in output.items() if not isinstance(v, Cache)})

    hook = model.register_forward_hook(without)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _patches() -> Iterator[None]:
    """What transformers itself replaces in its models while it exports them: loops over data, and
    kernels that branch on sizes. In those that are imported: any others it would import, dozens."""
    own = [patch for patch in _PATCHES[DYNAMO] if _is_there(patch[0])]
    with mock.patch.dict(_PATCHES, {DYNAMO: own}), apply_patches(DYNAMO):
        yield


def _is_there(path: str) -> bool:
    """Whether a path is not one of a model's module (`transformers.models.llama.modeling_llama`)
    that is yet to be imported."""
    return not path.startswith(MODELS) or ".".join(path.split(".")[:4]) in sys.modules


def _no_empty_masks() -> AbstractContextManager[None]:
    """A mask that hides nothing is left out while exporting, as it is otherwise. Encoders that
    shorten their sequence layer by layer cannot take one, and it would be computed in vain."""
    found: Any = mock.patch.object(masking_utils, "is_torchdynamo_exporting", bool, create=True)
    return cast(AbstractContextManager[None], found)


def _overlapping_windows() -> AbstractContextManager[None]:
    """Views by strides are taken as windows where they are such: strides count what lies in
    memory, and say nothing of which dimension is read."""
    plain = torch.Tensor.as_strided
    taken = False

    def as_strided(
        x: torch.Tensor, size: Any, stride: Any, storage_offset: int | None = None
    ) -> torch.Tensor:
        nonlocal taken
        # code that is written by hand leaves the offset out; what makes windows takes strides too
        if storage_offset is not None or taken:
            return plain(x, size, stride, storage_offset)
        taken = True
        try:
            found = _windows(x, size, stride)
        finally:
            taken = False
        return plain(x, size, stride) if found is None else found

    found: Any = mock.patch.object(torch.Tensor, "as_strided", as_strided)
    return cast(AbstractContextManager[None], found)


def _windows(x: torch.Tensor, size: Sequence[Any], stride: Sequence[Any]) -> torch.Tensor | None:
    """Windows along a dimension, or along two that lie in memory as one: of x cut in pieces of w,
    windows of w that begin closer to one another."""
    size = [_plain_size(n) for n in size]
    wanted, own = list(zip(size, stride, strict=True)), list(zip(x.shape, x.stride(), strict=True))
    if not all(isinstance(n, int) for pair in (*wanted, *own) for n in pair) or wanted == own:
        return None
    joined = [d for d in range(len(own) - 1) if own[d][1] == own[d + 1][0] * own[d + 1][1]]
    for join in (None, *joined):
        base = own
        if join is not None:
            count, (piece, near) = own[join][0], own[join + 1]
            base = [*own[:join], (count * piece, near), *own[join + 2 :]]
        found = _window(base, wanted)
        if found is not None:
            return (
                (x if join is None else x.flatten(join, join + 1))
                .unfold(*found)
                .movedim(-1, found[0] + 1)
            )
    return None


def _plain_size(size: Any) -> Any:
    """A size that code has computed as a tensor, as a number where it is known."""
    constant = getattr(size, "constant", None)
    return size if constant is None else constant.item()


def _window(
    own: Sequence[tuple[int, int]], wanted: Sequence[tuple[int, int]]
) -> tuple[int, int, int] | None:
    """Dimension, length and step of the windows that have these sizes and strides."""
    if len(wanted) != len(own) + 1:
        return None
    for d, (total, near) in enumerate(own):
        (count, far), (length, own_near) = wanted[d : d + 2]
        if [*own[:d], *own[d + 1 :]] != [*wanted[:d], *wanted[d + 2 :]] or near != own_near:
            continue
        step = far // near if near else 0
        if (
            step
            and step * near == far
            and length <= total
            and count == (total - length) // step + 1
        ):
            return d, length, step
    return None


@contextmanager
def batched_experts(model: nn.Module) -> Iterator[None]:
    """Within the block experts run as batched matrix products, which have static shapes; also those
    of a model inside of one that has none itself."""
    saved = [
        (inner, getattr(inner.config, "_experts_implementation", None) or "eager")
        for inner in model.modules()
        if isinstance(inner, PreTrainedModel) and inner._can_set_experts_implementation()
    ]
    try:
        for inner, _ in saved:
            inner.set_experts_implementation("batched_mm")
        yield
    finally:
        for inner, before in saved:
            inner.set_experts_implementation(before)


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Within the block attention is written out, which branches on no size."""
    held = [c for c in _held(model) if hasattr(c, "_attn_implementation")]
    saved = [(c, c._attn_implementation) for c in held]
    try:
        for c, _ in saved:
            c._attn_implementation = "eager"
        yield
    finally:
        for c, before in saved:  # outer ones first: they set those inside of them
            c._attn_implementation = before


_HITS = ("nonzero", "__iter__", "__format__", "__getitem__")


@contextmanager
def answered(general: bool) -> Iterator[None]:
    """Within the block a branch on whether any or all entries of something are true has an answer.

    In general some are and not all are: code asks in order to leave work out. Its opposite is the
    plain case, as of a mask that hides nothing.
    """
    answers: Any = WeakTensorKeyDictionary()

    def asking(original: Any, answer: bool) -> Any:
        def ask(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            found = original(tensor, *args, **kwargs)
            if not args and not kwargs:
                answers[found] = answer
            return found

        return ask

    def reading(original: Any) -> Any:
        return lambda tensor: answers[tensor] if tensor in answers else original(tensor)

    with ExitStack() as within:
        for owner in (torch, torch.Tensor):
            for name, answer in (("any", general), ("all", not general)):
                asked = asking(getattr(owner, name), answer)
                within.enter_context(mock.patch.object(owner, name, asked))
        for name in ("__bool__", "item"):
            read = reading(getattr(torch.Tensor, name))
            within.enter_context(mock.patch.object(torch.Tensor, name, read))
        yield


@contextmanager
def every_hit() -> Iterator[None]:
    """Within the block a loop over those of `n` that the data hit goes over all `n`: how code finds
    the experts that some token chose. The others find no rows to work on and add nothing."""
    plain = {name: getattr(torch.Tensor, name) for name in _HITS}
    among: Any = WeakTensorKeyDictionary()

    def nonzero(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = plain["nonzero"](tensor, *args, **kwargs)
        if tensor.dim() == 1 and isinstance(tensor.shape[0], int):
            among[found] = tensor.shape[0]
        return found

    def rows(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        if tensor not in among:
            return iter(plain["__iter__"](tensor))
        return iter([torch.tensor([number]) for number in range(among[tensor])])

    def written(tensor: torch.Tensor, spec: str) -> str:
        known = tensor.dim() == 0
        return format(tensor.item(), spec) if known else str(plain["__format__"](tensor, spec))

    def taken(tensor: torch.Tensor, index: Any) -> Any:
        return plain["__getitem__"](tensor, _within(tensor, index))

    patched = {"nonzero": nonzero, "__iter__": rows, "__format__": written, "__getitem__": taken}
    with mock.patch.object(torch, "where", _some_places(torch.where)), ExitStack() as within:
        for name, function in patched.items():
            within.enter_context(mock.patch.object(torch.Tensor, name, function))
        yield


def _within(tensor: torch.Tensor, index: Any) -> Any:
    """An index beyond the last, which no data have, reads the last."""
    number = getattr(index, "constant", None)  # of a fake tensor whose value is known
    if number is None or number.numel() != 1 or int(number) < tensor.shape[0]:
        return index
    return torch.full_like(index, tensor.shape[0] - 1)


def _some_places(where: Any) -> Any:
    """Where a condition holds: in general in some places."""

    def places(condition: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = where(condition, *args, **kwargs)
        if not args and not kwargs:
            torch._check(found[0].shape[0] >= 2)  # type: ignore[no-untyped-call]
        return found

    return places


def _held(model: nn.Module) -> list[Any]:
    """Every configuration that a submodule holds, outer ones first."""
    outer = [getattr(m, "config", None) for m in model.modules()]
    held = [c for config in outer if hasattr(config, "to_dict") for c in configs_of(config)]
    return list({id(c): c for c in held}.values())


def configs_of(config: Any) -> Iterator[Any]:
    """A configuration, and those inside of it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from configs_of(value)
