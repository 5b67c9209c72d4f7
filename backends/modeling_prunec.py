"""Load a model that prunec made smaller layer by layer.

This file is written as it is beside every checkpoint of that kind. It needs torch and
transformers and nothing else. The stock model is built from the original sizes, then the section
`prunec` of `config.json` says what became smaller:

    shapes       new shape of each parameter that lost indices
    buffers      for each buffer outside the checkpoint, the indices that stayed, by dimension
    attributes   by module, the integers that followed (`num_heads`); `config.x` is the field x
                 of the configuration as this module sees it
    architecture the class whose parameter names are used above

`per_layer_config` in it is for readers: what the fields of the configuration are in each layer.

`PrunedX` is made on demand from the stock class `X`.
"""

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

PREFIX = "Pruned"
VERSION = 1

# Which attribute states which dimension of `weight`, where the layer's type tells.
SIZES: dict[Any, dict[str, int]] = {
    nn.Linear: {"out_features": 0, "in_features": 1},
    nn.Embedding: {"num_embeddings": 0, "embedding_dim": 1},
    Conv1D: {"nx": 0, "nf": 1},
    nn.GroupNorm: {"num_channels": 0},
    nn.modules.batchnorm._NormBase: {"num_features": 0},
}


Kept = dict[str, list[int]]
"""By dimension, as text since JSON knows no other keys, the indices that stay."""


def shrink(model: nn.Module, section: dict[str, Any]) -> None:
    """Give a model just built from the original sizes those of the `prunec` section, in place."""
    if section.get("version", VERSION) != VERSION:
        raise ValueError("config.json, section prunec: written by another version of prunec")
    _shrink_parameters(model, section.get("shapes", {}), _whole(model, section))
    _shrink_buffers(model, section.get("buffers", {}), _whole(model, section))
    for path, values in section.get("attributes", {}).items():
        module = _find(model, path, _whole(model, section))
        if module is not None:
            set_integers(module, values)


def _whole(model: nn.Module, section: dict[str, Any]) -> bool:
    """Whether every name of the section must exist: another head has other parameters."""
    name = type(model).__name__.removeprefix(PREFIX)
    return bool(name == section.get("architecture", name))


def _find(model: nn.Module, path: str, required: bool) -> Any:
    """A submodule, also when the section was written for the model with or without its head."""
    prefix = getattr(model, "base_model_prefix", "")
    for candidate in (path, path.removeprefix(prefix + "."), f"{prefix}.{path}".rstrip(".")):
        try:
            return model.get_submodule(candidate)
        except AttributeError:
            continue
    if required:
        raise ValueError(f"config.json, section prunec: the model has no module {path!r}")
    return None


def _shrink_parameters(model: nn.Module, shapes: dict[str, list[int]], required: bool) -> None:
    smaller: dict[int, nn.Parameter] = {}
    for name, shape in shapes.items():
        path, _, last = name.rpartition(".")
        module = _find(model, path, required)
        old = None if module is None else module._parameters.get(last)
        if old is None:
            if required:
                raise ValueError(f"config.json, section prunec: no parameter {name!r}")
            continue
        # A slice instead of an empty tensor: a model made without a checkpoint is initialised.
        part = old.detach()[tuple(slice(0, n) for n in shape)].clone()
        if list(part.shape) != list(shape):
            raise ValueError(f"config.json, section prunec: {name} has {list(old.shape)} at most")
        smaller[id(old)] = nn.Parameter(part, requires_grad=old.requires_grad)
    for module in model.modules():
        # Every place of a tied parameter.
        for last, old in module._parameters.items():
            if old is not None and id(old) in smaller:
                module._parameters[last] = smaller[id(old)]
                state_sizes(module)


def state_sizes(module: nn.Module) -> None:
    """Make the attributes that state sizes agree with the weight, where the type tells them."""
    weight: Any = getattr(module, "weight", None)
    if weight is None:
        return
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    for kind, names in SIZES.items():
        if isinstance(module, kind):
            for name, dim in names.items():
                setattr(module, name, weight.shape[dim])


def _shrink_buffers(model: nn.Module, kept: dict[str, Kept], required: bool) -> None:
    """Take the kept indices of buffers, and remember how to do it again."""
    again: list[tuple[nn.Module, str, list[int], Kept]] = []
    for name, dims in kept.items():
        path, _, last = name.rpartition(".")
        module = _find(model, path, required)
        if module is None:
            continue
        again.append((module, last, list(module._buffers[last].shape), dims))
    model.__dict__["_prunec_buffers"] = again
    for module, last, _, dims in again:
        module._buffers[last] = _taken(module._buffers[last], dims)


def _taken(buffer: Any, dims: Kept) -> torch.Tensor:
    for dim, indices in dims.items():
        at = torch.tensor(indices, dtype=torch.int64, device=buffer.device)
        buffer = buffer.index_select(int(dim), at)
    return torch.as_tensor(buffer)


def set_integers(module: nn.Module, values: dict[str, int]) -> None:
    own = {name: value for name, value in values.items() if not name.startswith("config.")}
    for name, value in own.items():
        setattr(module, name, value)
    fields = {n.removeprefix("config."): v for n, v in values.items() if n not in own}
    if fields:
        vars(module)["config"] = Seen(module.config, fields)


class Seen:
    """A configuration as one module sees it: some fields differ, all others are the model's."""

    def __init__(self, config: Any, fields: dict[str, int]) -> None:
        self.__dict__["_config"], self.__dict__["_fields"] = config, fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_config" not in self.__dict__:
            raise AttributeError(name)
        fields = self.__dict__["_fields"]
        return fields[name] if name in fields else getattr(self.__dict__["_config"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_config"], name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Seen":
        return Seen(copy.deepcopy(self.__dict__["_config"], memo), dict(self.__dict__["_fields"]))


class PrunedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What every `PrunedX` puts before the stock class `X`."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        shrink(self, config.prunec)

    @classmethod
    def _stock(cls) -> Any:
        return cls.__mro__[cls.__mro__.index(PrunedModel) + 1]

    # transformers reads the source of the class's file to answer these two.
    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(cls._stock()._can_set_attn_implementation())

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(cls._stock()._can_set_experts_implementation())

    def _get_static_cache_init_shape(self) -> None:
        """Heads differ by layer: a static cache takes its shapes from the first keys it gets."""
        return

    def _initialize_missing_keys(self, *args: Any, **kwargs: Any) -> None:
        """Buffers outside the checkpoint are computed in full, as in the stock model, then cut."""
        for module, last, shape, _ in self.__dict__["_prunec_buffers"]:
            old = module._buffers[last]
            module._buffers[last] = torch.empty(shape, dtype=old.dtype, device=old.device)
        super()._initialize_missing_keys(*args, **kwargs)
        for module, last, _, dims in self.__dict__["_prunec_buffers"]:
            module._buffers[last] = _taken(module._buffers[last], dims)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in the stock class; this file goes along, and resized embeddings are noted."""
        if self._auto_class is None:
            references = getattr(self.config, "auto_map", {}).items()
            named = [auto for auto, ref in references if ref.endswith("." + type(self).__name__)]
            made: Any = type(self)
            made.register_for_auto_class(named[0] if named else "AutoModel")
        found = {name: list(p.shape) for name, p in self.named_parameters(remove_duplicate=False)}
        section = dict(self.config.prunec)
        if _whole(self, section):
            section["shapes"] = {n: found.get(n, s) for n, s in section.get("shapes", {}).items()}
        self.config.prunec = section
        return super().save_pretrained(*args, **kwargs)


def __getattr__(name: str) -> Any:
    """Make `PrunedX` from the stock class `X`."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None)
    if not name.startswith(PREFIX) or not isinstance(stock, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, (PrunedModel, stock), {"__module__": __name__, "__doc__": stock.__doc__})
    globals()[name] = made
    return made
