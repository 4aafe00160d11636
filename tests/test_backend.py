"""Our lm-eval backend against lm-eval's own, on tiny models of random weights."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from bitladder.accuracy.backend.attention import UnsupportedModelError
from bitladder.accuracy.backend.lm import BitladderLM
from bitladder.accuracy.backend.plan import Request, plan_packs
from bitladder.accuracy.backend.scoring import score
from bitladder.accuracy.backend.speedups import Speedups
from bitladder.accuracy.backend.support import require_support
from bitladder.accuracy.huggingface import HuggingFaceModel
from bitladder.checkpoint.loading import load_pretrained, load_tokenizer
from bitladder.errors import UnknownNameError, UserError

SHARED: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
WINDOW = 9
"""shorter than the texts, so that it matters"""
CONFIGURATIONS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHARED),
    "llama3-rope": LlamaConfig(
        **SHARED,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(**SHARED, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SHARED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "qwen3": Qwen3Config(**SHARED),
    "gemma2": Gemma2Config(
        **SHARED,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
    ),
    "gemma3": Gemma3TextConfig(**SHARED, sliding_window=WINDOW, query_pre_attn_scalar=16),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small take longer with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def from_config(config: PreTrainedConfig) -> PreTrainedModel:
    maker: Any = AutoModelForCausalLM
    model: PreTrainedModel = maker.from_config(config).eval()
    return model


def make_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = from_config(CONFIGURATIONS[name])
    model.set_attn_implementation("eager" if name == "gemma2" else "sdpa")
    return model


def make_requests() -> list[Request]:
    """Documents with a common beginning and four choices each, and some without."""
    random = np.random.default_rng(0)
    beginning = random.integers(0, 300, 30)
    requests = []
    for document in range(12):
        context = random.integers(0, 300, random.integers(5, 30))
        if document % 4:
            context = np.concatenate([beginning, context])
        for _ in range(4):
            continuation = random.integers(0, 300, random.integers(1, 8)).astype(np.int32)
            whole = np.concatenate([context, continuation]).astype(np.int32)
            requests.append(Request(whole[:-1], continuation))
    return requests


def alone(model: PreTrainedModel, request: Request) -> tuple[float, bool]:
    """Log-likelihood and greedy flag by the model's own forward."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(request.inputs.astype(np.int64))[None]).logits[0]
    likely = torch.log_softmax(logits.float(), -1)[-len(request.targets) :]
    targets = torch.from_numpy(request.targets.astype(np.int64))
    return float(likely.gather(1, targets[:, None]).sum()), bool((likely.argmax(-1) == targets).all())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_log_likelihoods_are_those_of_the_model_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, requests = make_model(name), make_requests()
    expected = [alone(model, request) for request in requests]
    for token_budget, seed, short_chain in ((16, 0, 128), (16, 0, 0), (64, 0, 128), (64, 1, 8), (2000, 0, 128)):
        monkeypatch.setattr("bitladder.accuracy.backend.tree._SHORT_CHAIN", short_chain)
        scores = score(model, [plan_packs(requests, seed=seed, token_budget=token_budget)])
        assert scores.loglikelihood == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert scores.greedy.tolist() == [greedy for _, greedy in expected]


def test_greedy_continuation_is_flagged() -> None:
    model = make_model("llama")
    tokens = make_requests()[0].inputs
    with torch.inference_mode():
        best = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, -1].argmax().item()
    requests = [Request(tokens, np.array([token], np.int32)) for token in (best, (best + 1) % 300)]
    assert score(model, [plan_packs(requests, seed=0, token_budget=64)]).greedy.tolist() == [True, False]


def test_ties_go_to_the_lowest_token() -> None:
    model: Any = make_model("llama")
    model.lm_head.weight.data.zero_()
    inputs = np.array([5, 6], np.int32)
    requests = [Request(inputs, np.array([token], np.int32)) for token in (0, 1)]
    assert score(model, [plan_packs(requests, seed=0, token_budget=64)]).greedy.tolist() == [True, False]


def test_a_model_gets_its_own_attention_back() -> None:
    model = make_model("llama")
    score(model, [plan_packs(make_requests()[:4], seed=0, token_budget=64)])
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            GPTNeoConfig(vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global"], 2]]),
            "interface",
        ),
        (
            LlamaConfig(
                **SHARED,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            ),
            "dynamic",
        ),
    ],
    ids=["gpt-neo", "dynamic-rope"],
)
def test_what_cannot_be_packed_is_refused_with_a_reason(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        require_support(from_config(config))


def test_a_model_may_make_a_padding_mask_that_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OPT of transformers 5.17 does."""
    from transformers import masking_utils
    from transformers.models.llama import modeling_llama

    made = torch.ones
    masks = masking_utils.create_causal_mask

    def with_padding_mask(*, inputs_embeds: torch.Tensor, attention_mask: None, **others: Any) -> Any:
        assert attention_mask is None
        return masks(inputs_embeds=inputs_embeds, attention_mask=made(inputs_embeds.shape[:2]), **others)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", with_padding_mask)
    require_support(make_model("llama"))
    made = torch.zeros
    with pytest.raises(UnsupportedModelError, match="the causal mask in a way of its own"):
        require_support(make_model("llama"))


@pytest.mark.parametrize("short_chain", [0, 128])
def test_the_trial_finds_wrong_attention(short_chain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To kept keys in calls of their own, or in those of the units behind them."""
    from bitladder.accuracy.backend import tree

    def wrong_mask(
        _: tree.TreeAttention, start: int, end: int, keys: int, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor:
        return torch.zeros((end - start, keys), dtype=dtype)

    monkeypatch.setattr(tree, "_SHORT_CHAIN", short_chain)
    monkeypatch.setattr(tree, "merge", lambda output, lse, part, part_lse: (output, lse))
    if short_chain:
        monkeypatch.setattr(tree.TreeAttention, "_unit_mask", wrong_mask)
    with pytest.raises(UnsupportedModelError, match="trial"):
        require_support(make_model("llama"))


@pytest.fixture(scope="module")
def pair(tiny_llama: Path) -> Iterator[tuple[BitladderLM, HuggingFaceModel]]:
    """Ours and lm-eval's on the same FP32 model."""
    model, tokenizer = load_pretrained(tiny_llama, dtype=torch.float32), load_tokenizer(tiny_llama)
    ours = BitladderLM(model, tokenizer, token_budget=96, max_rows=3, max_length=128, cache_requests=False)
    theirs = HuggingFaceModel(model, tokenizer, 2)
    theirs._max_length = 128
    yield ours, theirs
    assert ours.unsupported is None, "what was compared was lm-eval's own way on both sides"


def ask(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=index, metadata=("task", index, 1))
        for index, one in enumerate(arguments)
    ]


PAIRS = [
    ("Which of the following is right? Answer:", " A"),
    ("Which of the following is right? Answer:", " B"),
    ("Which of the following is right? Answer: ", "C"),
    ("The quick brown fox ", " jumps over the lazy dog."),
    ("", "A ladder has rungs"),
    ("  ", "A ladder has rungs"),
    ("<|start|>Which of the", " following"),
    ("Füße ☃", " über"),
    ("12 + 30 = ", "42"),
]


def test_requests_are_tokenized_as_hf_does(pair: tuple[BitladderLM, HuggingFaceModel]) -> None:
    ours, theirs = pair
    asked = [one for one in PAIRS if one[0] != "  "]  # hf fails on a context of spaces alone
    answers = ours.loglikelihood(ask("loglikelihood", asked), disable_tqdm=True)
    expected = theirs.loglikelihood(ask("loglikelihood", asked), disable_tqdm=True)
    assert [value for value, _ in answers] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]


def test_one_text_may_be_split_in_two_ways(pair: tuple[BitladderLM, HuggingFaceModel]) -> None:
    """hf's logits_cache looks the shorter continuation up at the wrong position; without the cache it agrees."""
    ours, theirs = pair
    requests = ask("loglikelihood", [("", "A ladder has rungs"), ("<|start|>A ladder has", " rungs")])
    theirs.logits_cache = False
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    theirs.logits_cache = True
    answers = ours.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in answers] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_a_context_of_spaces_is_the_start_token(pair: tuple[BitladderLM, HuggingFaceModel]) -> None:
    spaces, empty = pair[0].loglikelihood(ask("loglikelihood", [("  ", "A"), ("", "  A")]), disable_tqdm=True)
    assert spaces == empty


def test_too_long_a_context_is_cut_for_each_choice(
    pair: tuple[BitladderLM, HuggingFaceModel], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    context = "the answer is forty-two " * 40
    requests = ask("loglikelihood", [(context, " A"), (context, " A, B, C or D. The quick brown fox")])
    with caplog.at_level(logging.WARNING):
        answers = ours.loglikelihood(requests, disable_tqdm=True)
    assert "2 of 2 requests exceed the model's 128 tokens" in caplog.text
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in answers] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert ours.truncated == theirs.truncated == {context}


@pytest.mark.parametrize("continuation", ["", "the answer is forty-two " * 40])
def test_a_continuation_that_cannot_be_scored_is_refused(
    pair: tuple[BitladderLM, HuggingFaceModel], continuation: str
) -> None:
    with pytest.raises(UserError, match="expected 1 to 128"):
        pair[0].loglikelihood(ask("loglikelihood", [("A", continuation)]), disable_tqdm=True)


def test_rolling_covers_texts_longer_than_the_model(pair: tuple[BitladderLM, HuggingFaceModel]) -> None:
    ours, theirs = pair
    requests = ask("loglikelihood_rolling", [("The quick brown fox " * 30,), ("A ladder",), ("",)])
    answers = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    assert answers == pytest.approx(theirs.loglikelihood_rolling(requests, disable_tqdm=True), abs=1e-3)
    assert answers[2] == 0


def test_progress_ends_at_the_number_of_requests(tiny_llama: Path) -> None:
    model, tokenizer = load_pretrained(tiny_llama, dtype=torch.float32), load_tokenizer(tiny_llama)
    seen: list[tuple[int, int]] = []
    ours = BitladderLM(
        model,
        tokenizer,
        token_budget=64,
        progress=lambda done, total: seen.append((done, total)),
        cache_requests=False,
    )
    ours.loglikelihood(ask("loglikelihood", PAIRS), disable_tqdm=True)
    assert seen[-1] == (len(PAIRS), len(PAIRS))
    assert all(before[0] <= after[0] for before, after in itertools.pairwise(seen))


def test_out_of_memory_halves_the_budget(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitladder.accuracy.backend import lm

    model, tokenizer = load_pretrained(tiny_llama, dtype=torch.float32), load_tokenizer(tiny_llama)
    ours = BitladderLM(model, tokenizer, token_budget=256, cache_requests=False)
    expected = ours.loglikelihood(ask("loglikelihood", PAIRS), disable_tqdm=True)

    def short_of_memory(model: Any, plans: Any, *others: Any) -> Any:
        first = next(iter(plans))
        if first.token_budget > 128:
            raise torch.OutOfMemoryError("no")
        return score(model, [first], *others)

    monkeypatch.setattr(lm, "score", short_of_memory)
    answers = ours.loglikelihood(ask("loglikelihood", PAIRS), disable_tqdm=True)
    assert ours.token_budget == 128
    assert [value for value, _ in answers] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_unsupported_models_run_hf_and_say_so(caplog: pytest.LogCaptureFixture, tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    config = GPTNeoConfig(
        vocab_size=512, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global"], 2]], pad_token_id=0
    )
    model = from_config(config)
    with caplog.at_level(logging.WARNING):
        ours = BitladderLM(model, tokenizer, cache_requests=False)
    assert "scored by lm-eval's hf backend, because" in caplog.text
    requests = ask("loglikelihood", PAIRS[:2])
    expected = HuggingFaceModel(model, tokenizer, 8).loglikelihood(requests, disable_tqdm=True)
    assert ours.loglikelihood(requests, disable_tqdm=True) == expected


def test_lm_eval_makes_it_from_arguments(tiny_llama: Path) -> None:
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import get_model

    made = get_model("bitladder").create_from_arg_string(
        f"pretrained={tiny_llama},dtype=float32,token_budget=77", {"batch_size": 4, "device": "cpu"}
    )
    assert isinstance(made, BitladderLM)
    assert (made.token_budget, made.fallback_batch_size, made.model.dtype) == (77, 4, torch.float32)
    with pytest.raises(UserError, match="compiled 'no'; expected true or false"):
        BitladderLM.create_from_arg_string(f"pretrained={tiny_llama},compiled=no", {"device": "cpu"})
    with pytest.raises(UnknownNameError, match="model argument"):
        BitladderLM.create_from_arg_obj({"pretrained": str(tiny_llama), "peft": "x"})


def test_plans_with_the_same_input_are_the_same() -> None:
    requests = make_requests()
    first, again, other = (plan_packs(requests, seed=seed, token_budget=128) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.tokens == other.tokens
    assert dataclasses.replace(first).digest == first.digest


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_lm_eval_s_default_device_may_be_missing(tiny_llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = {"pretrained": str(tiny_llama), "dtype": "float32"}
    made = BitladderLM.create_from_arg_obj(arguments, {"batch_size": 1, "device": "cuda:0"})
    assert made.model.device.type == "cpu"
    assert "no cuda:0, lm-eval's default device, on this machine: running on the CPU" in caplog.text
    with pytest.raises(UserError, match="'cuda:0' isn't available"):
        BitladderLM.create_from_arg_obj({**arguments, "device": "cuda:0"}, {"device": "cuda:0"})
    with pytest.raises(UserError, match="'cuda:1' isn't available"):
        BitladderLM.create_from_arg_obj(arguments, {"device": "cuda:1"})


def test_ways_are_model_arguments(tiny_llama: Path) -> None:
    made = BitladderLM.create_from_arg_string(f"pretrained={tiny_llama},overlapped=true", {"device": "cpu"})
    assert made.speedups == Speedups(overlapped=True)
