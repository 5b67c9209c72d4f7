"""Methods: a criterion scores, an allocator says how many stay, a restorer repairs the consumers.

A published method is a named choice of the three. What differs from the paper is said in `about`;
common to all: units are whatever the types say must leave together, scores of one kind are
compared within a group unless the allocator compares groups, and where a stream is there each
block is judged on the already pruned blocks before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.passes import allocators, restore
from prunec.passes.criteria import CRITERIA

__all__ = ["ALLOCATORS", "PRESETS", "RESTORERS", "Method", "parse_method"]

ALLOCATORS = tuple(allocators.ALLOCATORS)
"""Names of the ways to decide how many indices of each group stay."""

RESTORERS = tuple(restore.RESTORERS)
"""Names of the ways to repair what reads a group."""


@dataclass(frozen=True)
class Method:
    """One choice of each part, by name; `about` gives the source and what departs from it."""

    criterion: str
    allocate: str = "uniform"
    restore: str = "none"
    about: str = ""

    @property
    def title(self) -> str:
        """What it does, in one line."""
        return self.about.split("\n", 1)[0]

    @property
    def source(self) -> str:
        """Paper, section, equation, and departures."""
        return inspect.cleandoc("\n".join(self.about.split("\n")[1:])).replace("\n", " ")

    def __str__(self) -> str:
        return f"criterion={self.criterion},allocate={self.allocate},restore={self.restore}"


PARTS = tuple(field.name for field in fields(Method) if field.name != "about")

PRESETS: Mapping[str, Method] = {
    "auto": Method(
        "obs",
        "dp",
        "ls",
        about="""Ours: OBS sweeps, widths from their error curves, least squares on what stays.

        The order of removal is that of an OBS sweep on the stream as it is pruned; widths minimise
        the sum of the error curves, each in units of the loss, a quarter of the way back to
        uniform; every consumer is refitted with the ridge and the share that serve held-out tokens
        best.""",
    ),
    "magnitude": Method(
        "magnitude",
        about="""Norm of the weights of a unit.

        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1, with the
        Euclidean norm over all coupled weights (DepGraph, CVPR 2023, eq. 4) instead of the L1 norm
        of one filter. The same share of every layer. Nothing is retrained or restored.""",
    ),
    "taylor": Method(
        "taylor",
        "global",
        about="""Squared first order change of the loss.

        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, section 3.1
        (group contribution), ranked over all layers as there. Departures: one shot instead of
        alternating with training; scores are standardised within a layer before they are ranked,
        which the paper does not need for the gates it puts after normalisation.""",
    ),
    "llm-pruner": Method(
        "taylor-element",
        about="""First order change of the loss, weight by weight.

        Ma et al., LLM-Pruner, NeurIPS 2023, section 3.2, eq. 5 to first order (Element^1 of its
        tables and the default of its code), summed over the coupled weights. Departures: every
        layer gives the same share, where the paper spares the first and the last few; no LoRA
        recovery (section 3.3).""",
    ),
    "wanda-sp": Method(
        "wanda",
        about="""Weights times norms of inputs, summed over a unit's columns.

        Sun et al., Wanda, ICLR 2024, eq. 1, in the structured form that An et al., FLAP, AAAI
        2024, compare with. The same share of every layer, nothing restored.""",
    ),
    "flap": Method(
        "fluctuation",
        "global",
        "bias",
        about="""Fluctuation of inputs, ranked over all layers, means moved into biases.

        An et al., FLAP, AAAI 2024 (its sections have no numbers): fluctuation metric, adaptive
        structure search (standardised scores, one ranking), baseline bias compensation.
        Departures: counts come from one pass over the dense model, and what stays from a second
        one over the model as it is pruned; a layer without a bias gets none.""",
    ),
    "fasp": Method(
        "wanda",
        "uniform",
        "ls",
        about="""Wanda's column score, and least squares on what stays.

        Hu et al., FASP, arXiv 2501.09412: section 3.2 (score), eq. 9 (restoration, its limit of a
        small ridge). Departures: attention loses heads, where the paper leaves query and key
        projections alone and prunes columns of value and output.""",
    ),
    "ziplm": Method(
        "obs",
        "dp",
        "obs",
        about="""Optimal Brain Surgeon sweeps, widths by dynamic programming.

        Kurtic, Frantar, Alistarh, ZipLM, NeurIPS 2023: section 3.1, algorithm 1 (sweep and
        update), section 3.2 (error curves under a budget, by dynamic programming).
        Departures: the budget is whatever the target counts, where the paper takes a table of
        measured times; one shot, without its distillation.""",
    ),
    "osscar": Method(
        "obs-swap",
        "uniform",
        "ls",
        about="""Best subset for least squares by local search.

        Meng et al., OSSCAR, ICML 2024: layer-wise least squares, local search by exchanges with
        low rank updates. Departures: the search starts from the OBS
        sweep, and an exchange takes in the best unit and takes out the then cheapest one.""",
    ),
    "slimgpt": Method(
        "obs",
        "log-depth",
        "obs",
        about="""OBS with heads as blocks, more of late layers pruned than of early ones.

        Ling et al., SlimGPT, NeurIPS 2024: batched greedy pruning, incremental pruning ratio
        (logarithmic in depth). Departures: the order is the exact greedy one, which its grouped
        Cholesky factors approximate.""",
    ),
    "slimllm": Method(
        "slimllm",
        "block-influence",
        "ls",
        about="""Heads by Pearson similarity, channels in the feature space of the output.

        Guo et al., SlimLLM, ICML 2025: Pearson similarity and feature space importance (scores),
        layer-based importance ratio (from the cosine between a layer's input and output).
        Departures: its linear regression, one factor and offset for each output, is a case of
        least squares on all that stays, which takes its place.""",
    ),
    "adapt-pruner": Method(
        "taylor-element",
        "block-influence",
        about="""First order change of the loss, more pruned where a layer changes its input less.

        Wang et al., Adapt-Pruner, arXiv 2502.03460: section 3 (importance of a layer by the cosine
        between its input and output, sparsity around the mean by it; within a layer the Taylor
        score of LLM-Pruner). Departures: one step where the paper takes many small ones and
        measures again after each; no training in between.""",
    ),
    "minitron": Method(
        "activation-l2",
        about="""Size of the activations.

        Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation,
        NeurIPS 2024, section 2.2 (heads by the norm of their output, neurons by their activation).
        Departures: one norm over all tokens; widths by one share for all layers, where the paper
        searches architectures; no distillation.""",
    ),
}
"""Published methods by the names that `--method` takes."""


def parse_method(
    text: str,
    presets: Mapping[str, Method] = PRESETS,
    criteria: Iterable[str] = CRITERIA,
    allocators: Iterable[str] = ALLOCATORS,
    restorers: Iterable[str] = RESTORERS,
) -> Method:
    """The method that `--method` names: a preset, or `criterion=...,allocate=...,restore=...`.

    Parts that are not given are those of the preset that stands first (`flap,restore=ls`), or
    `uniform` and `none`; a bare criterion is short for one with these. Raises PrunecError (exit
    2) with all that is unknown, given twice or missing.
    """
    known = dict(zip(PARTS, map(tuple, (criteria, allocators, restorers)), strict=True))
    words = [word.strip() for word in text.split(",")]
    pairs = [_pair(word) for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    problems = list(_problems(text, words, pairs, presets, known))
    if problems:
        raise PrunecError(problems, Exit.USAGE)
    parts = dict(pairs)
    if not names:
        return Method(**parts)
    if names[0] not in presets:
        return Method(names[0], **parts)
    base = presets[names[0]]
    return replace(base, about="", **parts) if parts else base


def _pair(word: str) -> tuple[str, str]:
    part, _, name = word.partition("=")
    return part.strip(), name.strip()


def _problems(
    text: str,
    words: list[str],
    pairs: list[tuple[str, str]],
    presets: Mapping[str, Method],
    known: Mapping[str, tuple[str, ...]],
) -> Iterator[Diagnostic]:
    names = [word for word in words if "=" not in word]
    choices = (*presets, *(c for c in known["criterion"] if c not in presets))
    for i, name in enumerate(names):
        if i or words[0] != name:
            yield _problem(f"{name or 'an empty part'} stands where part=name should", text)
        elif name not in choices:
            yield Diagnostic(
                "P810",
                f"--method does not know {name!r}",
                "--method",
                help=f"one of {', '.join(presets)}; or criterion=...,allocate=...,restore=...",
            )
    seen: set[str] = set()
    for part, name in pairs:
        if part not in known:
            yield _problem(f"a method has no part {part!r}", text)
        elif name not in known[part]:
            help = f"one of {', '.join(known[part])}"
            yield Diagnostic("P810", f"{part}= does not know {name!r}", "--method", help=help)
        if part in seen:
            yield _problem(f"{part} is given twice", text)
        seen.add(part)
    if not names and "criterion" not in seen:
        yield _problem("a method needs a criterion", text)
    if names and names[0] in known["criterion"] and names[0] not in presets and "criterion" in seen:
        yield _problem("criterion is given twice", text)


def _problem(fact: str, text: str) -> Diagnostic:
    return Diagnostic(
        "P810",
        f"--method {text!r}: {fact}",
        "--method",
        help=f"a preset, or {', '.join(f'{part}=NAME' for part in PARTS)} separated by commas",
    )
