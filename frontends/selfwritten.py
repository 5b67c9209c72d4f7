"""A decoder writes its own calibration text: many short texts, of as many kinds as it knows.

Before each stands what the model is used to see before a text. The first token of every other one
is drawn evenly from the whole vocabulary, and that of all where nothing stands before it (LLM-QAT,
Liu et al., 2023, section 3.1, starts so): that gives prose, code, lists, whatever the model has
read. All else is plain sampling (temperature 1, no truncation), seeded, with fixed length; the
end-of-sequence token is never drawn, so that no text is cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from prunec.frontends.text import Ids
from prunec.ir.diagnostics import PrunecError, fail

__all__ = ["first_token", "sampling_dtype", "write_text"]

TEXT = 128
"""Tokens of one text, about: a window holds several."""

BATCH = 128
OPEN = -1
"""A token that the model is to draw."""

REMEDY = "give a text: --calibration FILE"
Progress = Callable[[int, int], None]


def sampling_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies such matrices itself, which doubles the speed."""
    native = torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def first_token(model: PreTrainedModel) -> int | None:
    """What a text starts with: BOS, or EOS where it separates texts, or None."""
    text = model.config.get_text_config(decoder=True)
    for name in ("bos_token_id", "eos_token_id"):
        for config in (model.generation_config, text):
            tokens = _ids(getattr(config, name, None))
            # some configurations keep the default of a larger vocabulary
            if known := [token for token in tokens if token < text.vocab_size]:
                return known[0]
    return None


def write_text(
    model: PreTrainedModel,
    n: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
    *,
    before: Sequence[int],
) -> Ids:
    """`n` windows of `length` tokens, shape (n, length), each of texts of about `TEXT` tokens that
    begin with the tokens `before`.

    The same seed gives the same text on the same machine. Raises P136 when the model cannot write.
    """
    rng = np.random.default_rng(seed)
    texts = -(-length // TEXT)
    size = -(-length // texts)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    topics = np.setdiff1d(np.arange(vocabulary), _ends(model))
    first = rng.choice(topics, size=(n * texts, 1))
    starts = np.tile(np.array(before, np.int64), (len(first), 1))
    if starts.size:
        first[::2] = OPEN
    else:
        starts, first = first, np.full_like(first, OPEN)
    step = _Step(len(starts) * max(size - starts.shape[1], 0), progress)
    found = []
    for i in range(0, len(starts), BATCH):
        draw = _Draw(int(rng.integers(2**31)), _ends(model), first[i : i + BATCH], step)
        found.append(_batch(model, starts[i : i + BATCH], size, draw))
    return np.concatenate(found).reshape(n, -1)[:, :length]


def _batch(model: PreTrainedModel, starts: Ids, length: int, draw: _Draw) -> Ids:
    """Texts of `length` tokens that go on from `starts` (k, m)."""
    more = length - starts.shape[1]
    if more <= 0:
        return starts[:, :length]
    start = torch.from_numpy(starts)
    # The model's own settings may hold penalties and truncations meant for chatting.
    plain: Any = GenerationConfig
    kept, model.generation_config = model.generation_config, plain()
    try:
        with torch.inference_mode():
            made = model.generate(  # type: ignore[operator]
                start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=more,
                do_sample=False,
                use_cache=True,
                logits_processor=[draw],
            )
    except PrunecError:
        raise
    except Exception as error:  # models raise anything
        said = " ".join(str(error).split())[:200]
        raise fail("P136", f"the model cannot write its own text: {said}", help=REMEDY) from error
    finally:
        model.generation_config = kept
    return np.asarray(made.numpy(), np.int64)


class _Draw(LogitsProcessor):
    """Sample by inverting the cumulative distribution, and leave only what was drawn: at first
    what is `given` (k, 1), where it is not `OPEN`.

    One uniform number a row instead of one for every entry of the vocabulary, from a generator of
    its own: torch's global state is not touched.
    """

    def __init__(self, seed: int, never: list[int], given: Ids, step: _Step) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.never = never
        self.given: torch.Tensor | None = torch.from_numpy(given)
        self.step = step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        if not torch.isfinite(scores.sum()):
            raise fail(
                "P136",
                "the model cannot write its own text: its logits are not finite",
                help="check its weights; " + REMEDY,
            )
        scores[:, self.never] = -torch.inf
        heights = scores.softmax(-1).double().cumsum(-1)
        at = torch.rand(len(scores), 1, generator=self.generator, dtype=torch.float64)
        drawn = torch.searchsorted(heights, at * heights[:, -1:], right=True)
        drawn = drawn.clamp_(max=scores.shape[-1] - 1)
        if self.given is not None:
            drawn = torch.where(self.given == OPEN, drawn, self.given)
            self.given = None
        self.step(len(scores))
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


class _Step:
    """Counts tokens for the progress callback."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, tokens: int) -> None:
        self.done += tokens
        if self.progress is not None:
            self.progress(self.done, self.total)


def _ends(model: PreTrainedModel) -> list[int]:
    """Tokens that end a text, unless the vocabulary would be empty without them."""
    config = model.config.get_text_config(decoder=True)
    found: set[int] = set()
    for holder in (model.generation_config, config):
        found |= set(_ids(getattr(holder, "eos_token_id", None)))
    inside = sorted(token for token in found if token < config.vocab_size)
    return inside if len(inside) < config.vocab_size else []


def _ids(value: Any) -> list[int]:
    """Token ids from a field that holds one, several or none."""
    if value is None:
        return []
    several = value if isinstance(value, (list, tuple)) else [value]
    return [int(token) for token in several if int(token) >= 0]
