"""What a model is calibrated on by itself: its own text, prose, noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from worded import WORDS, Make, build, maker, refused, tokenizer

from prunec.frontends.calibration import calibration
from prunec.frontends.noise import noise_images, strewn
from prunec.frontends.prose import prose
from prunec.frontends.selfwritten import write_text


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def test_decoder_writes_its_own_text(make: Make) -> None:
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


def test_own_text_begins_as_the_tokenizer_begins_texts(make: Make) -> None:
    source, model = make("decoder")
    found = calibration(source, model, "self", 8, 12, 3)
    assert len(set(found.inputs["input_ids"][:, 0])) > 2
    assert any("nothing stands before a text" in note for note in found.notes)
    tokenizer(around=True).save_pretrained(source.folder)
    found = calibration(source, model, "self", 8, 12, 3)
    assert (found.inputs["input_ids"][:, 0] == 1).all()
    assert not found.notes


def test_the_random_state_of_torch_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    write_text(build("decoder").eval(), 2, 4, seed=0, before=(1,))
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_for_chatting_do_not_matter() -> None:
    model = build("decoder").eval()
    plain = write_text(model, 3, 8, seed=0, before=(1,))
    model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=2, max_length=3)
    np.testing.assert_array_equal(write_text(model, 3, 8, seed=0, before=(1,)), plain)
    assert model.generation_config.repetition_penalty == 5.0


def test_text_follows_the_distribution_of_the_model() -> None:
    """A model without layers to speak of: the second token's frequencies are the softmax."""
    model = build("decoder").eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        expected = model(torch.tensor([[1]])).logits[0, 0]
        expected[2] = -torch.inf
        expected = expected.softmax(-1).numpy()
    ids = write_text(model, 8000, 2, seed=0, before=(1,))[::2, 1]
    found = np.bincount(ids, minlength=len(expected)) / len(ids)
    # The standard deviation of each frequency is below 0.5 / sqrt(4000) = 0.008.
    np.testing.assert_allclose(found, expected, atol=0.04)


@pytest.mark.parametrize(("before", "every"), [((1,), 2), ((), 1), ((1, 5), 2)])
def test_texts_are_about_all_of_the_vocabulary(before: tuple[int, ...], every: int) -> None:
    """Of every other text the first token is any, but for the one that ends a text; of all where
    nothing stands before it."""
    ids = write_text(build("decoder").eval(), 4000, 3, seed=0, before=before)
    assert (ids[:, : len(before)] == before).all()
    first = ids[every - 1 :: every, len(before)]
    found = np.bincount(first, minlength=WORDS + 3) / len(first)
    wanted = np.full(WORDS + 3, 1 / (WORDS + 2))
    wanted[2] = 0
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_a_window_holds_several_texts() -> None:
    ids = write_text(build("decoder").eval(), 2, 300, seed=0, before=(1,))
    assert ids.shape == (2, 300)
    assert (ids[:, [0, 100, 200]] == 1).all()


def test_model_whose_logits_are_not_finite() -> None:
    model = build("decoder").eval()
    with torch.no_grad():
        model.lm_head.weight[5, 5] = torch.nan
    assert refused(lambda: write_text(model, 2, 4, seed=0, before=(1,)))[0] == "P136"


def test_encoder_reads_prose(make: Make) -> None:
    source, model = make("encoder")
    found = calibration(source, model, "self", 4, 16, seed=0)
    assert found.inputs["input_ids"].shape == (4, 16)
    assert "prose" in found.origin


def test_tokens_are_strewn_into_prose() -> None:
    """Three of ten, seeded, and none of the special ones; the others stay where they are."""
    ids = np.tile(np.array([1, *range(10, 59)]), (200, 1))
    found = strewn(ids, [0, 1, 2], 1000, seed=0)
    assert (found[:, 0] == 1).all()
    assert not np.isin(found[:, 1:], [0, 1, 2]).any()
    assert (found[:, 1:] != ids[:, 1:]).mean() == pytest.approx(0.3, abs=0.02)
    assert found.max() > 900
    assert (found == strewn(ids, [0, 1, 2], 1000, seed=0)).all()


def test_encoder_without_tokenizer(make: Make) -> None:
    source, model = make("encoder", with_tokenizer=False)
    found = calibration(source, model, "self", 4, 16, seed=0)
    ids = found.inputs["input_ids"]
    assert (ids.shape, ids.min() >= 0, ids.max() < WORDS + 3) == ((4, 16), True, True)
    assert "weakly" in found.notes[0]


def test_encoder_decoder_gets_both_inputs(make: Make) -> None:
    source, model = make("seq2seq")
    found = calibration(source, model, "self", 4, 16, seed=0)
    ids, shifted = found.inputs["input_ids"], found.inputs["decoder_input_ids"]
    assert (shifted[:, 0] == 0).all()
    np.testing.assert_array_equal(shifted[:, 1:], ids[:, :-1])


def test_vision_gets_noise(make: Make) -> None:
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
