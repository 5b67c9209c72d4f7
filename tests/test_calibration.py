"""Calibration data: texts, the text a model writes itself, prose, noise and arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from prunec.frontends.calibration import Calibration, calibration, detokenise_wikitext, windows
from prunec.frontends.hf import build_meta, load_config
from prunec.frontends.noise import noise_images
from prunec.frontends.prose import prose
from prunec.frontends.selfwritten import write_text
from prunec.frontends.source import Source, resolve
from prunec.frontends.text import Frame, frame, spread_windows
from prunec.ir.diagnostics import Exit, PrunecError

WORDS = 60
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": WORDS + 3,
    "max_position_embeddings": 64,
}


def tokenizer(around: bool = False) -> Any:
    """Words `w0`, `w1` ... are their own number plus 3; 0 pads, 1 starts and 2 ends a text."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


class Letters:
    """A tokenizer that puts `before` and `after` around the letters' codes."""

    def __init__(self, before: list[int], after: list[int]) -> None:
        self.before, self.after = before, after

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        ids = [ord(c) for c in text]
        return {"input_ids": [*self.before, *ids, *self.after] if add_special_tokens else ids}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    match kind:
        case "decoder":
            ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | ids))
        case "encoder":
            return transformers.BertModel(transformers.BertConfig(**SMALL))
        case "seq2seq":
            sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
            config = transformers.T5Config(
                vocab_size=63, decoder_start_token_id=0, pad_token_id=0, **sizes
            )
            return transformers.T5ForConditionalGeneration(config)
        case "vision":
            sizes = {"embedding_size": 4, "hidden_sizes": [8, 8], "depths": [1, 1]}
            return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    raise AssertionError(kind)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Source, Any]]:
    """A saved model with tokenizer, as its source and on the meta device."""

    def made(kind: str, with_tokenizer: bool = True) -> tuple[Source, Any]:
        folder = tmp_path / kind
        build(kind).save_pretrained(folder)
        if with_tokenizer:
            tokenizer().save_pretrained(folder)
        source = resolve(str(folder))
        return source, build_meta(load_config(source))

    return made


def text(words: int) -> str:
    return " ".join(f"w{i % WORDS}" for i in range(words))


def refused(run: Callable[[], Any]) -> tuple[str, Exit]:
    with pytest.raises(PrunecError) as raised:
        run()
    assert raised.value.diagnostics[0].help, "every diagnostic has a remedy"
    return raised.value.diagnostics[0].code, raised.value.exit_code


# Texts


def test_wikitext_is_detokenised() -> None:
    before = (
        ' = Valkyria = \n \n It cost 3 @,@ 000 @.@ 5 yen ( about $ 30 ) , a well @-@ known " low "'
        " price ; it isn 't <unk> 's . \n"
    )
    after = (
        ' = Valkyria = \n \n It cost 3,000.5 yen (about $ 30), a well-known " low "'
        " price; it isn't <unk>'s. \n"
    )
    assert detokenise_wikitext(before.replace("isn 't", "is n't")) == after
    assert detokenise_wikitext(after) == after


def test_windows_follow_each_other() -> None:
    found = windows(text(25), tokenizer(), 10)
    np.testing.assert_array_equal(found, np.arange(20).reshape(2, 10) + 3)


def test_windows_have_the_special_tokens_of_the_tokenizer() -> None:
    assert frame(tokenizer(around=True)) == Frame((1,), (2,))
    found = windows(text(25), tokenizer(around=True), 10)
    np.testing.assert_array_equal(found[:, 0], [1, 1, 1])
    np.testing.assert_array_equal(found[:, -1], [2, 2, 2])
    np.testing.assert_array_equal(found[:, 1:-1], np.arange(24).reshape(3, 8) + 3)


def test_spread_windows_cover_the_text_without_overlap() -> None:
    ids = spread_windows("".join(map(chr, range(1000))), Letters([], []), 5, 20, seed=1)
    assert ids.shape == (5, 20)
    assert (np.diff(ids) == 1).all(), "each is one piece of the text"
    assert (ids[:, 0] // 200 == np.arange(5)).all(), "one from each fifth"
    again = spread_windows("".join(map(chr, range(1000))), Letters([], []), 5, 20, seed=1)
    np.testing.assert_array_equal(ids, again)
    other = spread_windows("".join(map(chr, range(1000))), Letters([], []), 5, 20, seed=2)
    assert (ids != other).any()


def test_large_texts_are_tokenised_in_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.frontends.text.LARGE", 100)
    ids = spread_windows(text(3000), tokenizer(around=True), 4, 12, seed=0)
    assert ids.shape == (4, 12)
    body = ids[:, 1:-1]
    assert (body >= 3).all(), "no word is cut"
    assert (np.diff(body) % WORDS == 1).all()


def test_text_file(make: Callable[..., tuple[Source, Any]], tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text(500))
    source, model = make("decoder")
    found = calibration(source, model, str(path), 6, 20, seed=0)
    assert {k: (v.shape, str(v.dtype)) for k, v in found.inputs.items()} == {
        "input_ids": ((6, 20), "int64"),
        "attention_mask": ((6, 20), "int64"),
    }
    assert (found.inputs["attention_mask"] == 1).all()
    assert (len(found), found.tokens, found.notes) == (6, 120, ())
    assert [len(batch["input_ids"]) for batch in found.batches(4)] == [4, 2]
    model.to_empty(device="cpu")
    model(**{k: torch.from_numpy(v) for k, v in next(found.batches(2)).items()})


def test_several_texts_share_the_windows(
    make: Callable[..., tuple[Source, Any]], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("w1 " * 100)
    (tmp_path / "b.txt").write_text("w2 " * 100)
    source, model = make("decoder")
    found = calibration(source, model, f"{tmp_path}/a.txt,{tmp_path}/b.txt", 5, 10, seed=0)
    assert found.inputs["input_ids"].mean(axis=1).tolist() == [4, 5, 4, 5, 4]


def test_what_is_not_as_asked_is_noted(
    make: Callable[..., tuple[Source, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text(200) + " w1 @-@ w2")
    source, model = make("decoder")
    found = calibration(source, model, str(path), 9, 1000, seed=0)
    assert found.inputs["input_ids"].shape == (3, 64)
    notes = " ".join(found.notes)
    assert "detokenised" in notes
    assert "64 tokens, the most" in notes
    assert "3 windows" in notes


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "P130"),
        (b"", "P130"),
        (b"  \n ", "P130"),
        (b"gr\xfcn", "P131"),
        (b"w1 w2", "P132"),
    ],
)
def test_bad_texts(
    make: Callable[..., tuple[Source, Any]], tmp_path: Path, content: bytes | None, code: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    source, model = make("decoder")
    found = refused(lambda: calibration(source, model, str(path), 2, 10, seed=0))
    assert found == (code, Exit.USAGE)


def test_text_needs_a_tokenizer(make: Callable[..., tuple[Source, Any]], tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text(100))
    source, model = make("decoder", with_tokenizer=False)
    assert refused(lambda: calibration(source, model, str(path), 2, 10, seed=0))[0] == "P133"
    (source.folder / "tokenizer.json").write_text("{")
    source = resolve(str(source.folder))
    assert refused(lambda: calibration(source, model, str(path), 2, 10, seed=0))[0] == "P133"


def test_windows_without_room() -> None:
    assert refused(lambda: windows(text(9), tokenizer(around=True), 2))[0] == "P132"


# By itself


def test_decoder_writes_its_own_text(make: Callable[..., tuple[Source, Any]]) -> None:
    source, model = make("decoder", with_tokenizer=False)
    seen: list[tuple[int, int]] = []
    found = calibration(source, model, "self", 5, 12, 3, lambda *a: seen.append(a))
    ids = found.inputs["input_ids"]
    assert ids.shape == (5, 12)
    assert (ids[:, 0] == 1).all(), "each starts with BOS"
    assert (ids != 2).all(), "none ends early"
    assert seen[-1] == (55, 55)
    again = calibration(source, model, "self", 5, 12, 3)
    np.testing.assert_array_equal(ids, again.inputs["input_ids"])
    other = calibration(source, model, "self", 5, 12, 4)
    assert (ids != other.inputs["input_ids"]).any()


def test_the_random_state_of_torch_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    write_text(build("decoder").eval(), 2, 4, seed=0)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_for_chatting_do_not_matter() -> None:
    model = build("decoder").eval()
    plain = write_text(model, 3, 8, seed=0)
    model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=2, max_length=3)
    np.testing.assert_array_equal(write_text(model, 3, 8, seed=0), plain)
    assert model.generation_config.repetition_penalty == 5.0


def test_text_follows_the_distribution_of_the_model() -> None:
    """A model without layers to speak of: the second token's frequencies are the softmax."""
    model = build("decoder").eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        expected = model(torch.tensor([[1]])).logits[0, 0]
        expected[2] = -torch.inf
        expected = expected.softmax(-1).numpy()
    ids = write_text(model, 4000, 2, seed=0)[:, 1]
    found = np.bincount(ids, minlength=len(expected)) / len(ids)
    # The standard deviation of each frequency is below 0.5 / sqrt(4000) = 0.008.
    np.testing.assert_allclose(found, expected, atol=0.04)


def test_model_whose_logits_are_not_finite() -> None:
    model = build("decoder").eval()
    with torch.no_grad():
        model.lm_head.weight[5, 5] = torch.nan
    assert refused(lambda: write_text(model, 2, 4, seed=0))[0] == "P136"


def test_encoder_reads_prose(make: Callable[..., tuple[Source, Any]]) -> None:
    source, model = make("encoder")
    found = calibration(source, model, "self", 4, 16, seed=0)
    assert found.inputs["input_ids"].shape == (4, 16)
    assert "prose" in found.origin


def test_encoder_without_tokenizer(make: Callable[..., tuple[Source, Any]]) -> None:
    source, model = make("encoder", with_tokenizer=False)
    found = calibration(source, model, "self", 4, 16, seed=0)
    ids = found.inputs["input_ids"]
    assert (ids.shape, ids.min() >= 0, ids.max() < WORDS + 3) == ((4, 16), True, True)
    assert "weakly" in found.notes[0]


def test_encoder_decoder_gets_both_inputs(make: Callable[..., tuple[Source, Any]]) -> None:
    source, model = make("seq2seq")
    found = calibration(source, model, "self", 4, 16, seed=0)
    ids, shifted = found.inputs["input_ids"], found.inputs["decoder_input_ids"]
    assert (shifted[:, 0] == 0).all()
    np.testing.assert_array_equal(shifted[:, 1:], ids[:, :-1])


def test_vision_gets_noise(make: Callable[..., tuple[Source, Any]]) -> None:
    source, model = make("vision", with_tokenizer=False)
    found = calibration(source, model, "self", 2, 999, seed=0)
    assert found.inputs["pixel_values"].shape == (2, 3, 224, 224)
    assert found.inputs["pixel_values"].dtype == np.float32
    assert (len(found), found.tokens) == (2, 2)
    path = source.folder / "config.json"
    assert refused(lambda: calibration(source, model, str(path), 2, 9, seed=0))[0] == "P134"


def test_noise_looks_like_photographs() -> None:
    images = noise_images(4, 3, 64, 48, seed=0)
    np.testing.assert_allclose(images.mean(axis=(2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std(axis=(2, 3)), 1, atol=1e-5)
    near = np.mean(images[..., 1:] * images[..., :-1])
    assert near > 0.65, "neighbours are alike"
    assert np.mean(images[:, 0] * images[:, 1]) > 0.7, "so are the colors"


def test_prose_is_long_enough_and_prose() -> None:
    found = prose()
    assert len(found.split()) > 25_000
    assert "::=" not in found


def test_held_out_windows() -> None:
    whole = Calibration({"input_ids": np.arange(12).reshape(4, 3)}, "numbers")
    kept, held_out = whole.split(1)
    assert kept.inputs["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert held_out.inputs["input_ids"].tolist() == [[9, 10, 11]]


# Arrays


def test_arrays_are_used_as_they_are(
    make: Callable[..., tuple[Source, Any]], tmp_path: Path
) -> None:
    source, model = make("vision", with_tokenizer=False)
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).random((5, 3, 8, 8))
    np.savez(path, pixel_values=images)
    found = calibration(source, model, str(path), 3, 0, seed=0)
    np.testing.assert_array_equal(found.inputs["pixel_values"], images[[0, 1, 3]].astype(np.float32))


@pytest.mark.parametrize(
    "arrays",
    [
        {"pixel_values": np.zeros((2, 3, 8, 8)), "colour": np.zeros(2)},
        {"labels": np.zeros(2, np.int64)},
        {"pixel_values": np.zeros((2, 3, 8, 8)), "labels": np.zeros(3)},
        {"pixel_values": np.zeros((0, 3, 8, 8))},
        {"pixel_values": np.float32(3)},
        {"pixel_values": np.array([{}], object)},
        None,
    ],
)
def test_bad_arrays(make: Callable[..., tuple[Source, Any]], tmp_path: Path, arrays: Any) -> None:
    source, model = make("vision", with_tokenizer=False)
    path = tmp_path / "images.npz"
    path.write_bytes(json.dumps(3).encode())
    if arrays is not None:
        np.savez(path, **arrays)
    found = refused(lambda: calibration(source, model, str(path), 2, 9, seed=0))
    assert found == ("P135", Exit.USAGE)
