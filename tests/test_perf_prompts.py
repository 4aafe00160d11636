"""Where prompts come from, how they are cut, and what is planned to run on them."""

from pathlib import Path
from typing import Any

import pytest

from bitladder.errors import UserError
from bitladder.perf.engines import DEFAULT
from bitladder.perf.scenarios import cut_prompts, cut_windows, plan_scenarios
from bitladder.records import Calibration, Machine, Settings, hash_json
from bitladder.study.resolved import workload
from bitladder.text.corpus import WIKITEXT, WIKITEXT_CONFIG, read_corpus

ROWS = [" = A title = \n", "", "The quick brown fox jumps over 12 lazy dogs .\n", "Which of them is right ?\n"] * 4


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from bitladder.checkpoint.loading import load_tokenizer

    return load_tokenizer(tiny_llama)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror in Hub layout with a WikiText of 16 rows."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mirror" / WIKITEXT
    (folder / WIKITEXT_CONFIG).mkdir(parents=True)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {WIKITEXT_CONFIG}\n  data_files:\n"
        f"  - split: test\n    path: {WIKITEXT_CONFIG}/test-*\n---\n"
    )
    datasets.Dataset.from_dict({"text": ROWS}).to_parquet(folder / WIKITEXT_CONFIG / "test-00000-of-00001.parquet")
    return tmp_path / "mirror"


def test_windows_of_the_joined_split(mirror: Path, tokenizer: Any) -> None:
    prompts = cut_prompts(tokenizer, 16, read_corpus(str(mirror), False))
    whole = tokenizer("".join(ROWS), add_special_tokens=False)["input_ids"]
    assert len(prompts.token_ids) == len(whole) // 16 > 2
    assert [token for window in prompts.token_ids for token in window] == whole[: len(whole) // 16 * 16]
    assert prompts.prompts_hash == hash_json(prompts.token_ids)
    assert prompts.origin == "Salesforce/wikitext wikitext-2-raw-v1 test"


def test_rows_begin_again_after_the_last(mirror: Path, tokenizer: Any) -> None:
    prompts = cut_prompts(tokenizer, 16, read_corpus(str(mirror), True))
    assert prompts.row(1) == prompts.token_ids[1]
    assert prompts.row(len(prompts.token_ids) + 1) == prompts.token_ids[1]


def test_prose_for_a_builtin_model(tokenizer: Any) -> None:
    prompts = cut_prompts(tokenizer, 128, read_corpus(None, True))
    assert prompts.origin == "built-in prose"
    assert len(prompts.token_ids) > 8
    assert {len(window) for window in prompts.token_ids} == {128}


def test_mirror_without_wikitext_says_so(tmp_path: Path, tokenizer: Any) -> None:
    prompts = cut_prompts(tokenizer, 128, read_corpus(str(tmp_path), False))
    assert prompts.origin == f"built-in prose ({tmp_path} has no {WIKITEXT})"


def test_mirror_without_the_split(mirror: Path, tokenizer: Any) -> None:
    for file in (mirror / WIKITEXT).glob("**/test-*"):
        file.unlink()
    with pytest.raises(UserError, match="no split 'test' of wikitext-2-raw-v1; add it"):
        cut_prompts(tokenizer, 16, read_corpus(str(mirror), False))


def test_mirror_that_is_not_there(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no such folder; expected a mirror"):
        cut_prompts(tokenizer, 16, read_corpus(str(tmp_path / "nothing"), False))


def test_hub_out_of_reach(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'Salesforce/wikitext' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    read_corpus.cache_clear()
    prompts = cut_prompts(tokenizer, 16, read_corpus(None, False))
    read_corpus.cache_clear()
    assert prompts.origin == f"built-in prose ({WIKITEXT} is neither reachable nor cached)"
    assert prompts.token_ids == cut_prompts(tokenizer, 16, read_corpus(None, True)).token_ids


def test_text_too_short_for_one_window(mirror: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="tokens, 100,000 needed; choose a smaller --prompt-tokens"):
        cut_prompts(tokenizer, 100_000, read_corpus(str(mirror), False))


def test_rest_of_the_text_is_left_out() -> None:
    assert cut_windows(range(7), 3) == ((0, 1, 2), (3, 4, 5))
    assert cut_windows(range(2), 3) == ()


CALIBRATION = Calibration(
    device="cpu",
    threads=2,
    max_batch_cap=8,
    machine=Machine(cpu_model="c", cpu_count=2, total_memory_bytes=1, platform="p", gpus=(), versions={}),
)


def test_scenarios_have_the_published_workloads() -> None:
    first, second = plan_scenarios(workload(Settings(model="m"), DEFAULT), CALIBRATION, "hash")
    assert (first.scenario, first.batch_size_cap, first.requests) == ("batch1", 1, 200)
    assert (second.scenario, second.batch_size_cap, second.requests) == ("max-batch", 8, 2000)
    assert (first.prompt_tokens, first.new_tokens, first.device, first.threads) == (128, 128, "cpu", 2)
    assert {first.prompts_hash, second.prompts_hash} == {"hash"}


def test_requests_may_be_of_one_scenario() -> None:
    first, second = plan_scenarios(
        workload(Settings(model="m", requests={"max-batch": 40}), DEFAULT), CALIBRATION, "hash"
    )
    assert (first.requests, second.requests) == (200, 40)


def test_requests_cap_both_scenarios() -> None:
    settings = Settings(model="m", requests=10, scenarios=("max-batch",), time_limit_s=5.0)
    (only,) = plan_scenarios(workload(settings, DEFAULT), CALIBRATION, "hash")
    assert (only.scenario, only.requests, only.time_limit_s) == ("max-batch", 10, 5.0)
