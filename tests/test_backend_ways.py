"""What makes a GPU faster gives the same answers; Triton's kernels run in its interpreter where there is no GPU."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitladder.accuracy.backend import arguments, compiling, speedups
from bitladder.accuracy.backend.attention import attend_rows
from bitladder.accuracy.backend.lm import BitladderLM
from bitladder.accuracy.backend.plan import plan_packs
from bitladder.accuracy.backend.scoring import score, split_requests
from bitladder.accuracy.backend.speedups import Speedups, default_speedups
from bitladder.checkpoint.loading import load_pretrained, load_tokenizer
from bitladder.errors import UserError
from test_backend import ask, make_model, make_requests, one_thread

__all__ = ["one_thread"]  # a fixture

with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
"""the interpreter can't multiply BF16"""


def make_pairs() -> list[tuple[str, str]]:
    random = np.random.default_rng(0)
    words = np.array(["ladder", "rung", "12", "is right?", "forty-two", "quick", "fox"])
    pairs = []
    for _ in range(40):
        context = " ".join(random.choice(words, random.integers(3, 12))) + " Answer:"
        pairs += [(context, continuation) for continuation in (" A", " B, or C", " 42")]
    return pairs


def test_chunks_are_the_requests_in_order_and_grow() -> None:
    pairs = make_pairs()
    chunks = split_requests(pairs, 64)
    assert [index for start, end in chunks for index in range(start, end)] == list(range(len(pairs)))
    assert all(pairs[start - 1][0] != pairs[start][0] for start, _ in chunks[1:])
    sizes = [end - start for start, end in chunks]
    assert sizes[0] < sizes[1] < sizes[2]
    assert split_requests(pairs, 64) == chunks
    assert split_requests(pairs, 10**6) == [(0, len(pairs))]
    assert split_requests([], 64) == []


def test_what_requests_share_counts_once() -> None:
    shots = "a rung, a ladder; " * 200
    pairs = [(f"{shots} {number}?", f" {choice}") for number in range(20) for choice in "ABCD"]
    assert split_requests(pairs, 5000) == [(0, len(pairs))]


def test_requests_in_chunks_get_the_same_answers(tiny_llama: Path) -> None:
    model, tokenizer = load_pretrained(tiny_llama, dtype=torch.float32), load_tokenizer(tiny_llama)
    asked = ask("loglikelihood", make_pairs())
    seen: list[tuple[int, int]] = []
    whole, chunks = (
        BitladderLM(
            model,
            tokenizer,
            token_budget=64,
            cache_requests=False,
            speedups=one,
            progress=lambda done, total: seen.append((done, total)),
        )
        for one in (Speedups(), Speedups(overlapped=True))
    )
    expected = whole.loglikelihood(asked, disable_tqdm=True)
    answers = chunks.loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in answers] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
    assert len(whole.plans) == 1 < len(chunks.plans)
    assert seen[-1] == (len(asked), len(asked))


def test_a_cpu_is_used_as_before() -> None:
    assert default_speedups(make_model("llama")) == Speedups()


@pytest.mark.parametrize(("name", "kinds"), [("llama", 3), ("qwen3", 3), ("gemma2", 3)])
def test_norms_mlps_and_rotary_embeddings_are_compiled_for_as_long_as_asked(
    name: str, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: set[str] = set()

    def compiler(function: Callable[..., Any], axis: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            called.add(function.__qualname__)
            assert all(part.shape[axis] == tokens for part in arguments if isinstance(part, torch.Tensor))
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(compiling, "_compiled", compiler)
    model, requests = make_model(name), make_requests()
    plan = plan_packs(requests, seed=0, token_budget=4000)
    (tokens,) = (len(pack.tokens) for pack in plan.packs)
    expected = score(model, [plan])
    assert not called
    assert score(model, [plan], Speedups(compiled=True)).loglikelihood.tolist() == expected.loglikelihood.tolist()
    assert len(called) == kinds
    called.clear()
    score(model, [plan])
    assert not called


def test_what_cannot_be_compiled_runs_as_it_is(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def compiler(function: Callable[..., Any], axis: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            raise TorchDynamoException("no compiler")

        return call

    monkeypatch.setattr(compiling, "_compiled", compiler)
    model, tokenizer = load_pretrained(tiny_llama, dtype=torch.float32), load_tokenizer(tiny_llama)
    lm = BitladderLM(model, tokenizer, token_budget=64, cache_requests=False, speedups=Speedups(compiled=True))
    assert len(lm.loglikelihood(ask("loglikelihood", make_pairs()[:6]), disable_tqdm=True)) == 6
    assert "can't be compiled here, so they run as they are (no compiler)" in caplog.text


@with_triton
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("group", "size", "softcap"), [(2, 64, None), (1, 24, 2.0)])
def test_kernels_give_what_plain_products_give(
    dtype: torch.dtype, group: int, size: int, softcap: float | None
) -> None:
    off = speedups._largest_error(DEVICE, dtype, group, size, softcap, True)
    assert off < speedups._TOLERANCE[str(dtype).removeprefix("torch.")]


@with_triton
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("token_budget", [40, 2000])
def test_kernels_score_as_units_do(name: str, token_budget: int) -> None:
    model = make_model(name).to(DEVICE)  # type: ignore[arg-type]
    plan = plan_packs(make_requests()[:16], seed=0, token_budget=token_budget)
    plain, ours = (score(model, [plan], one) for one in (Speedups(), Speedups(tree_kernel=True, row_kernel=True)))
    assert ours.loglikelihood == pytest.approx(plain.loglikelihood, abs=1e-4)
    assert (ours.greedy == plain.greedy).all()


@with_triton
def test_ties_of_rounded_log_probabilities_go_to_the_lowest_token() -> None:
    from bitladder.accuracy.backend.triton_kernels import row_statistics

    logits = torch.zeros((2, 300), device=DEVICE)
    logits[1, 7] = logits[1, 200] = 3.0
    logits[1, 3] = torch.nextafter(torch.tensor(3.0), torch.tensor(0.0))  # less, but not after the logarithm
    expected = torch.log_softmax(logits, -1).argmax(-1)
    assert row_statistics(logits)[2].tolist() == expected.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_of_generation_is_as_exact_as_pytorchs_attention(dtype: torch.dtype) -> None:
    """Scores that were rounded to 16 bits before the softmax would be five times as far off, weights are 1.3 times."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    query = 4 * torch.randn(64, 9, 64, device="cuda")
    key, value = torch.randn(64, 3, 500, 64, device="cuda"), torch.randn(64, 3, 500, 64, device="cuda")
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    mask = torch.zeros(64, 500, device="cuda", dtype=dtype)
    ours, _ = attend_rows(query, key, value, mask, scale=0.125)

    def theirs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.125, enable_gqa=True)
        return found[:, :, 0]

    exact = theirs(query.double()[:, :, None], key.double(), value.double())
    usual = theirs(query[:, :, None], key, value)
    assert (ours.double() - exact).norm() < 2 * (usual.double() - exact).norm()


def test_without_triton_it_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(__import__("sys").modules, "triton.errors", None)
    speedups._kernels_work.cache_clear()
    assert not speedups._kernels_work(torch.device("cpu"), torch.float32, 1, 16, None, False)
    speedups._kernels_work.cache_clear()
    assert "without Triton" in caplog.text


def test_ways_that_a_model_or_a_device_cannot_go_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^tree_kernel: found cpu, where our kernels don't run"):
        arguments._chosen_speedups(make_model("llama"), {"tree_kernel": True})
    with pytest.raises(UserError, match=r"^recorded: found a device or a model whose steps can't be recorded"):
        arguments._chosen_speedups(make_model("llama"), {"recorded": True})
    assert arguments._chosen_speedups(make_model("llama"), {"compiled": True}) == Speedups(compiled=True)
    chunked = make_model("llama")
    monkeypatch.setattr(chunked.config, "attention_chunk_size", 8, raising=False)
    with pytest.raises(UserError, match=r"^compiled: .* has to score, because its attention is chunked; leave comp"):
        arguments._chosen_speedups(chunked, {"compiled": True})
