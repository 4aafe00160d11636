"""Divergence from the baseline: which texts, exact logits, and figures with their intervals."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitladder.accuracy.backend.compiling import widened_products
from bitladder.accuracy.divergence import Reference, _with_window, cut_documents, load_reference, measure_divergence
from bitladder.errors import UserError
from bitladder.records import Divergence, DivergenceOutcome, Prompts, WindowDivergence
from bitladder.summary.agreement import summarize_divergence
from bitladder.text.corpus import WIKITEXT_SPLIT, Corpus, _by_article, read_corpus
from conftest import MakeTinyLlama

MIRROR = Path(__file__).parents[2] / "shared" / "data"
ITEM = Divergence(baseline_hash="b", texts_hash="t", windows=3, window_tokens=40, device="cpu")


@pytest.fixture(scope="module")
def windows() -> Prompts:
    ids = np.random.default_rng(0).integers(2, 380, (3, 40))
    rows = tuple(tuple(row) for row in ids.tolist())
    return Prompts(token_ids=rows, prompts_hash="t", origin="noise", documents=("a", "a", "b"))


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from bitladder.checkpoint.loading import load_tokenizer

    return load_tokenizer(tiny_llama)


def test_articles_begin_at_headings_and_not_at_formulas() -> None:
    rows = [
        "",
        " = One = \n",
        "",
        " x \n",
        " = 1 rad / s = \n",
        " y \n",
        " = = Part = = \n",
        " = Two = \n",
        "",
        " z \n",
    ]
    articles = _by_article(rows)
    assert list(articles) == ["1 One", "2 Two"]
    assert "".join(articles.values()) == "".join(rows)


@pytest.mark.skipif(not MIRROR.is_dir(), reason="no mirror in ../shared/data")
def test_wikitext_has_its_articles() -> None:
    corpus = read_corpus(str(MIRROR), False)
    assert len(corpus.documents) == 60
    assert list(corpus.documents)[:2] == ["1 Robert Boulter", "2 Du Fu"]
    assert corpus.origin.endswith(WIKITEXT_SPLIT)


def test_every_document_gives_its_first_window_before_any_gives_its_second(tokenizer: Any) -> None:
    corpus = Corpus({"long": "0123456789" * 3, "short": "+-*/=" * 2, "none": "%"}, "digits")
    cut = cut_documents(tokenizer, corpus, 4, 8)
    assert cut.documents == ("long", "short", "long", "long")
    assert tokenizer.decode(cut.token_ids[2]) == "89012345"
    assert cut_documents(tokenizer, corpus, 2, 8).token_ids == cut.token_ids[:2]
    with pytest.raises(UserError, match=r"digits: no document has 40 tokens; leave it out with --no-divergence"):
        cut_documents(tokenizer, corpus, 4, 40)


def test_windows_start_as_the_tokenizer_starts_a_request(tokenizer: Any) -> None:
    class Starting:
        bos_token_id = 0

        def __call__(self, text: Any, add_special_tokens: bool = True, **_: Any) -> Any:
            found = tokenizer(text, add_special_tokens=False)
            return {"input_ids": [0, *found["input_ids"]]} if add_special_tokens else found

    corpus = Corpus({"one": "0123456789"}, "digits")
    (row,) = cut_documents(Starting(), corpus, 1, 8).token_ids  # type: ignore[arg-type]
    assert row == (0, *cut_documents(tokenizer, corpus, 1, 8).token_ids[0])


def logits_of(directory: Path, windows: Prompts) -> Any:
    """(windows, tokens, vocabulary) in FP64, each window by itself, from the model's own forward."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.inference_mode(), widened_products(model.device):
        return torch.stack([model(input_ids=torch.tensor([row])).logits[0].double() for row in windows.token_ids])


def test_figures_are_those_of_both_models_side_by_side(
    tiny_llama: Path, make_tiny_llama: MakeTinyLlama, windows: Prompts, tmp_path: Path
) -> None:
    """The baseline's logits made anew are its own, bit for bit, and what is measured is what both models say."""

    rung = make_tiny_llama(tmp_path / "rung", dtype="float16")
    path = tmp_path / "reference.safetensors"
    itself = measure_divergence(tiny_llama, ITEM, windows, path, is_baseline=True)
    assert {value for window in itself.windows for value in window.kl} == {0.0}
    assert all(
        all(window.agrees) and window.loglikelihoods == window.baseline_loglikelihoods for window in itself.windows
    )

    found = measure_divergence(rung, ITEM, windows, path, is_baseline=False)
    theirs, ours = (torch.log_softmax(logits_of(one, windows)[:, :-1], -1) for one in (tiny_llama, rung))
    expected = (theirs.exp() * (theirs - ours)).sum(-1)
    assert np.allclose([window.kl for window in found.windows], expected, atol=2e-6)
    assert 1e-5 < float(expected.mean()) < 1e-2, "rounding to FP16 and BF16 apart is seen"
    following = torch.tensor(windows.token_ids)[:, 1:, None]
    for logs, name in ((theirs, "baseline_loglikelihoods"), (ours, "loglikelihoods")):
        told = [getattr(window, name) for window in found.windows]
        assert np.allclose(told, logs.gather(-1, following)[..., 0], atol=1e-5)
    assert [window.agrees for window in found.windows] == [
        tuple(row) for row in (theirs.argmax(-1) == ours.argmax(-1)).tolist()
    ]


def test_products_in_fp32_would_be_another_models(tiny_llama: Path, windows: Prompts, tmp_path: Path) -> None:
    """Why the baseline's own compute type makes its logits."""

    path = tmp_path / "reference.safetensors"
    measure_divergence(tiny_llama, ITEM, windows, path, is_baseline=True)
    reference = load_reference(path, "cpu")
    own = logits_of(tiny_llama, windows)
    with widened_products(torch.device("cpu")):
        assert torch.equal(torch.stack([reference.logits(row) for row in range(3)]).double(), own)
    assert reference.weight is not None
    weight = reference.weight.float()
    wide = torch.stack([states.float() @ weight.T for states in reference.states]).double()
    assert float((wide - own).abs().max()) > 1e-3


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_soft_capped_logits_are_made_anew_too(softcap: float | None, windows: Prompts, tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, set_seed

    set_seed(1)
    config = Gemma2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        final_logit_softcapping=softcap,
        initializer_range=0.3,
    )
    Gemma2ForCausalLM(config).bfloat16().save_pretrained(tmp_path / "gemma")
    path = tmp_path / "reference.safetensors"
    itself = measure_divergence(tmp_path / "gemma", ITEM, windows, path, is_baseline=True)
    assert {value for window in itself.windows for value in window.kl} == {0.0}
    assert load_reference(path, "cpu").softcap == softcap


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_logits_that_are_more_than_the_heads_products_are_kept(family: str, windows: Prompts, tmp_path: Path) -> None:
    """Scaled behind the head: the head's products are other logits, so the model's own are kept."""
    from tiny_families import save_tiny_family

    scaled = {"cohere": {"logit_scale": 0.5}, "granite": {"logits_scaling": 8.0}}[family]
    directory = save_tiny_family(family, tmp_path / family, **scaled)
    path = tmp_path / "reference.safetensors"
    own = measure_divergence(directory, ITEM, windows, path, is_baseline=True)
    assert max(value for window in own.windows for value in window.kl) == 0
    reference = load_reference(path, "cpu")
    assert reference.weight is None
    assert torch.equal(torch.stack([reference.logits(row) for row in range(3)]).double(), logits_of(directory, windows))
    again = measure_divergence(directory, ITEM, windows, path, is_baseline=False)
    assert max(value for window in again.windows for value in window.kl) == 0


def test_a_later_window_that_is_no_product_of_the_head_makes_all_logits() -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(11, 4), torch.randn(3, 5, 4)
    logits = states @ weight.T
    reference = Reference(weight, None, None, [], "cpu")
    for window, calls in enumerate((1, 1, 2)):
        reference = _with_window(reference, [states[window]] * calls, logits[window])
        assert (reference.weight is None) == (window == 2)
    for window in range(3):
        torch.testing.assert_close(reference.logits(window), logits[window])


def test_what_cannot_be_measured_says_why(
    tiny_llama: Path, make_tiny_llama: MakeTinyLlama, windows: Prompts, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "reference.safetensors"
    with pytest.raises(UserError, match="the baseline's answers to these texts are not there"):
        measure_divergence(tiny_llama, ITEM, windows, path, is_baseline=False)
    with pytest.raises(UserError, match="the baseline has no checkpoint"):
        unbound = ITEM.model_copy(update={"baseline_hash": None})
        measure_divergence(tiny_llama, unbound, windows, path, is_baseline=False)
    measure_divergence(tiny_llama, ITEM, windows, path, is_baseline=True)
    larger = make_tiny_llama(tmp_path / "larger", vocab_size=520)
    with pytest.raises(UserError, match="a vocabulary of 520, the baseline's has 512"):
        measure_divergence(larger, ITEM, windows, path, is_baseline=False)
    broken = make_tiny_llama(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] *= math.inf
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="logits that are not numbers"):
        measure_divergence(broken, ITEM, windows, path, is_baseline=False)


Draw = Callable[[np.random.Generator, int], Any]


def outcome_of(documents: int, tokens: int, draw: Draw, random: np.random.Generator) -> DivergenceOutcome:
    """One window a document, of divergences that `draw` gives; what the rung loses is its divergence."""
    windows = []
    for document in range(documents):
        kl = draw(random, tokens)
        windows.append(
            WindowDivergence(
                document=str(document),
                kl=tuple(kl.tolist()),
                agrees=tuple((kl < 0.3).tolist()),
                baseline_loglikelihoods=(-2.0,) * tokens,
                loglikelihoods=tuple((-2.0 - kl).tolist()),
            )
        )
    return DivergenceOutcome(origin="drawn", windows=tuple(windows))


def clustered(random: np.random.Generator, tokens: int) -> Any:
    """Each document has a level of its own."""
    return random.exponential(1.0, tokens) * 0.1 * math.exp(random.normal(0, 0.3))


def test_figures_of_known_tokens() -> None:
    found = summarize_divergence(outcome_of(4, 100, lambda _, n: np.linspace(0, 0.99, n), np.random.default_rng(0)))
    assert (found.documents, found.tokens) == (4, 400)
    assert found.kl_mean.value == pytest.approx(0.495)
    assert found.kl_max.value == pytest.approx(0.99)
    assert found.agreement_percent.value == pytest.approx(30.0)
    assert found.perplexity == pytest.approx(math.exp(2.495))
    assert found.perplexity_ratio.value == pytest.approx(math.exp(0.495))
    assert found.kl_mean.reason == "all 4 samples are equal, so they show no spread"
    assert (found.kl_tail.low, found.kl_tail.reason) == (
        None,
        "400 tokens are too few for an interval of this quantile",
    )


def test_intervals_hold_the_truth_where_documents_differ() -> None:
    """In about 95 of 100 samples, the quantile's in somewhat fewer, and the agreement's in more: some documents hold no
    disagreement, and may hide one that is all of it."""
    random = np.random.default_rng(3)
    draws = np.concatenate([clustered(random, 50) for _ in range(40_000)])
    truth = {
        "kl_mean": draws.mean(),
        "kl_tail": np.quantile(draws, 0.99),
        "agreement_percent": 100 * (draws < 0.3).mean(),
        "perplexity_ratio": math.exp(draws.mean()),
    }
    held = dict.fromkeys(truth, 0)
    runs = 200
    for _ in range(runs):
        found = summarize_divergence(outcome_of(32, 100, clustered, random))
        for name, value in truth.items():
            estimate = getattr(found, name)
            held[name] += estimate.low <= value <= estimate.high
    assert all(0.88 <= count / runs < 1 for count in held.values()), held
