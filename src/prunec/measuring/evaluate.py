"""Quality of a model on a text: perplexity of language models, similarity of encoders.

Protocol: the text is lightly detokenised if it is word-level WikiText, tokenised as a whole and cut
into windows of 1,024 tokens that do not overlap; a rest that does not fill a window is left out.
Special tokens that the tokenizer puts around a text (a beginning-of-sequence token, say) are part
of every window and of its 1,024. The perplexity is the exponential of the mean negative
log-likelihood of every token but the first of each window.

Whether a model is a language model is found by running it: it scores every token of the
vocabulary, and a later token does not change what it says at earlier ones. Where activations are
quantised as they come, with one scale for all tokens, it does; there the next token must be more
likely than the token that is read. Of any other model the mean output over the tokens is compared,
or, where it gives one vector for each text, that one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from prunec.frontends.places import check_place
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.measuring.artifacts import Artifact, find_artifacts
from prunec.measuring.bench import measure
from prunec.measuring.corpus import Corpus, read_corpus
from prunec.measuring.feeds import Array, example_feeds, token_feeds
from prunec.measuring.runners import Runner
from prunec.progress import Progress
from prunec.reports.data import plain

__all__ = ["EvalOptions", "EvalReport", "EvalRow", "check_options", "evaluate", "perplexity"]

LATENCY_LENGTH = 128
LATENCY_REPEAT = 5
PROBE = 16
ROWS = 128
"""Positions whose logits are turned into float64 at once."""

Predict = Callable[[Array], Array]
"""Token ids (batch, length) to the output that is measured: (batch, length, features), or
(batch, features) of a model that pools."""


@dataclass(frozen=True)
class EvalOptions:
    """What `prunec eval` is asked to measure."""

    verb: ClassVar[str] = "eval"

    model: str
    data: Path
    against: str | None = None
    tokenizer: str | None = None
    max_windows: int | None = None
    window: int = 1024
    trust_remote_code: bool = False

    @property
    def read_files(self) -> tuple[Path, ...]:
        """All files that are read beside the models."""
        return (self.data,)


@dataclass(frozen=True)
class EvalRow:
    """One model. `perplexity` of language models, `similarity` (cosine, to the dense model) of
    others; `latency` in seconds at batch 1."""

    model: str
    kind: str
    params: int
    bytes: int
    latency: float
    perplexity: float | None = None
    similarity: float | None = None
    dense: bool = False


@dataclass(frozen=True)
class EvalReport:
    """What `prunec eval` measured, the dense model first when there is one."""

    data: str
    window: int
    windows: int
    latency_length: int
    rows: tuple[EvalRow, ...]

    def to_json(self) -> dict[str, Any]:
        found = plain(asdict(self))
        assert isinstance(found, dict)
        return found


def evaluate(options: EvalOptions, progress: Progress) -> EvalReport:
    """Measure every format at MODEL, and the dense model when one is given."""
    check_options(options)
    trust = options.trust_remote_code
    found = find_artifacts(options.model, trust_remote_code=trust)
    dense = find_artifacts(options.against, trust_remote_code=trust)[:1] if options.against else ()
    check_place(options.data)
    for artifact in (*found, *dense):
        artifact.folder()  # what is not there is told before any work
    with progress.step("Tokenising the text"):
        fixed = [n for artifact in (*found, *dense) if (n := artifact.length()) is not None]
        corpus = read_corpus(
            options.data,
            (*found, *dense),
            tokenizer=options.tokenizer,
            window=min([options.window, *fixed]),
            most=options.max_windows,
        )
    length = min(LATENCY_LENGTH, corpus.windows.shape[1])
    reference: Array | None = None
    rows = []
    for position, artifact in enumerate((*dense, *found)):
        with progress.step(f"Evaluating {artifact.name}", total=len(corpus.windows)) as advance:
            row, pooled = _measure(artifact, corpus, reference, length, advance)
        if position < len(dense):
            reference, row = pooled, replace(row, dense=True)
        rows.append(row)
    count, window = corpus.windows.shape
    return EvalReport(str(options.data), window, count, length, tuple(rows))


def perplexity(
    predict: Predict, windows: Array, advance: Callable[[int], None] | None = None
) -> float:
    """Perplexity over `windows` (count, length) of a model that maps tokens to logits."""
    total, count = 0.0, 0
    for window in windows:
        logits = predict(window[None])[0]
        for losses in _losses(logits[:-1], window[1:]):
            total += float(losses.sum())
            count += losses.size
        if advance is not None:
            advance(1)
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf


def _losses(logits: Array, targets: Array) -> Iterator[Array]:
    """Negative log-likelihoods in float64, a few positions at a time."""
    for start in range(0, len(targets), ROWS):
        rows = logits[start : start + ROWS].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        chosen = np.take_along_axis(rows, targets[start : start + ROWS, None], -1)[:, 0]
        yield np.log(np.exp(rows).sum(-1)) - chosen


def _measure(
    artifact: Artifact,
    corpus: Corpus,
    reference: Array | None,
    length: int,
    advance: Callable[[int], None],
) -> tuple[EvalRow, Array | None]:
    """A row, and the pooled outputs of a model that is no language model."""
    runner = artifact.open()
    predict = _predictor(runner, artifact)
    confusion = similarity = pooled = None
    if _is_language_model(runner, predict, corpus, artifact):
        confusion = perplexity(predict, corpus.windows, advance)
    else:
        pooled = _pooled(predict, corpus.windows, advance)
        similarity = None if reference is None else _similarity(pooled, reference, artifact)
    feeds = example_feeds(runner.inputs, batch=1, length=length)
    (latency,) = measure([runner], [feeds], LATENCY_REPEAT).medians
    sizes = (runner.params, runner.bytes)
    return EvalRow(artifact.name, artifact.kind, *sizes, latency, confusion, similarity), pooled


def _predictor(runner: Runner, artifact: Artifact) -> Predict:
    def predict(tokens: Array) -> Array:
        return _measured(runner.run(token_feeds(runner.inputs, tokens)), artifact)[1]

    return predict


def _measured(outputs: dict[str, Array], artifact: Artifact) -> tuple[str, Array]:
    """The first output with a vector for every token, else the first with one for every text."""
    for dimensions in (3, 2):
        for name, value in outputs.items():
            if value.ndim == dimensions and np.issubdtype(value.dtype, np.floating):
                return name, value
    raise fail(
        "P854",
        "the model has no output with a vector for every token or text",
        where=artifact.location,
        help="eval measures language models and encoders; bench measures any model",
    )


def _is_language_model(
    runner: Runner, predict: Predict, corpus: Corpus, artifact: Artifact
) -> bool:
    """Scores for every token of the vocabulary that do not depend on later tokens, unless by a
    common scale of all of them.

    Exporters call outputs as they like; what is called logits may be narrower than the tokenizer.
    """
    fixed = any(s.takes_tokens and isinstance(s.shape[-1], int) for s in runner.inputs)
    tokens = corpus.windows[:1, : None if fixed else PROBE]
    name, first = _measured(runner.run(token_feeds(runner.inputs, tokens)), artifact)
    scores = first.shape[-1] >= corpus.vocabulary or name == "logits" or name.isdigit()
    if first.ndim != 3 or not scores or first.shape[-1] <= corpus.windows.max():
        return False
    if _scaled(artifact):
        return _foretells(first[0], tokens[0])
    changed = tokens.copy()
    changed[:, -1] = tokens[:, 0] if tokens[0, -1] != tokens[0, 0] else (tokens[:, 0] == 0)
    before, after = first[:, :-1], predict(changed)[:, :-1]
    return bool(np.abs(after - before).max() <= 1e-3 * np.abs(before).max())


def _scaled(artifact: Artifact) -> bool:
    """Whether all tokens share scales that are found while the model runs."""
    if artifact.kind != "onnx":
        return False
    from prunec.backends.onnx_quantize import quantised_ops

    return "DynamicQuantizeLinear" in quantised_ops(Path(artifact.location))


def _foretells(logits: Array, tokens: Array) -> bool:
    """Whether the next token is likelier than the one that is read, which an encoder repeats."""
    ahead = np.concatenate(list(_losses(logits[:-1], tokens[1:])))
    same = np.concatenate(list(_losses(logits[:-1], tokens[:-1])))
    return bool(ahead.mean() < same.mean())


def _pooled(predict: Predict, windows: Array, advance: Callable[[int], None]) -> Array:
    """The mean output of each window, shape (windows, features)."""
    means = []
    for window in windows:
        found = predict(window[None])[0]
        means.append(np.atleast_2d(found).mean(0, dtype=np.float64))
        advance(1)
    return np.stack(means)


def _similarity(pooled: Array, reference: Array, artifact: Artifact) -> float:
    if pooled.shape != reference.shape:
        raise fail(
            "P855",
            f"outputs of {pooled.shape[1]} features do not compare with {reference.shape[1]}",
            where=artifact.location,
            help="give the dense model that this one was made from with --against",
            exit_code=Exit.USAGE,
        )
    norms = np.linalg.norm(pooled, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((pooled * reference).sum(1) / norms).mean())


def check_options(options: EvalOptions) -> None:
    """Raise PrunecError (exit 2) for numbers that are too small."""
    counts = {"--max-windows": options.max_windows or 1, "--window": options.window - 1}
    if options.max_windows == 0:
        counts["--max-windows"] = 0
    problems: Sequence[Diagnostic] = [
        Diagnostic("P811", f"{name} is too small", name, help="at least 1 window of 2 tokens")
        for name, value in counts.items()
        if value < 1
    ]
    if problems:
        raise PrunecError(problems, Exit.USAGE)
