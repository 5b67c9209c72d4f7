"""Names, words and parts of a model are shown as what they are, whatever they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from test_page import HOSTILE, check_harmless, report
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from worded import WORDS, build

import prunec
from prunec.cli.app import main
from prunec.reports.card import render_card

EVIL = "<img src=x onerror=alert(1)>"
BARE = re.compile(r"(?<!\\)[<>\[\]`]")
"""What would be markup in a card."""


def check_card(card: str) -> None:
    """Code spans are the paths of formats, and what stands around them is no markup."""
    body = re.sub(r"`[^`\n]*`", "", card.partition("\n# ")[2])
    assert BARE.findall(body) == []
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", card)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_stays_text(name: str) -> None:
    card = render_card(report(name))
    check_card(card)
    assert card.count("\n") == render_card(report("thing")).count("\n")


def test_words_of_a_tokenizer_and_names_of_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*HOSTILE, *(f"w{i}" for i in range(WORDS - len(HOSTILE)))]
    words = [word.replace(" ", "_") for word in words]
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {w: i + 3 for i, w in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    folder, text, out = tmp_path / EVIL, tmp_path / f"{EVIL}.txt", tmp_path / "out"
    build("decoder").save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    text.write_text(" ".join(words * 20))
    line = [
        "prune", str(folder), "-o", str(out), "--target", "params=80%", "--method", "fasp",
        "--groups", "neuron", "--calibration", str(text), "--calibration-samples", "4",
        "--calibration-length", "16", "--format", "hf",
    ]  # fmt: skip
    assert main(line) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", shown.out + shown.err)
    (source,) = json.loads((out / "report.json").read_text())["sources"]
    told = {row[key] for row in source["samples"] for key in ("given", "actual", "dense")}
    assert any("<script>" in given for given in told), "the text is among what is shown"
    page = check_harmless((out / "report.html").read_text(encoding="utf-8"))
    assert "<script>alert(1)</script>" in page.text
    check_card((out / "README.md").read_text(encoding="utf-8"))


def test_parts_of_a_module(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(EVIL, nn.Linear(6, 40))
            self.add_module("</td>|x", nn.Linear(40, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.children()
            return second(first(x).relu())

    small = prunec.load(Net(), torch.zeros(2, 6)).prune(
        target="params=60%", method="magnitude", calibration="none"
    )
    assert list(small.module.state_dict()) == list(Net().state_dict())
    small.save(tmp_path / "out")
    page = check_harmless((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert EVIL in page.text
    check_card((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
