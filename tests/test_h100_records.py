"""Records of a study on an H100, as they came from there: what a GPU's numbers look like, and what they say.

LLaMA 3.2 1B's shape, prompts of 128 tokens and 32 new ones, torch 2.11, transformers 5.17, bitsandbytes 0.50.2. A study
on the other card of the same host began contexts on this one meanwhile.
"""

import math
from pathlib import Path

import pytest

from bitladder.decide import recommend
from bitladder.records import PerformanceOutcome
from bitladder.report.content import compose
from bitladder.report.output import to_markdown
from bitladder.results import Results
from bitladder.results.merge import unpack
from bitladder.results.store import load_results
from bitladder.summary.resources import Readings, resource_metrics
from bitladder.summary.summarize import summarize
from bitladder.units import GIB

ARCHIVES = Path(__file__).parent / "h100"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return unpacked("llama-3.2-1b-shape", tmp_path_factory)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """As if the card had 15 GiB, on two hosts of one kind."""
    return unpacked("llama-3.2-1b-shape-15gib", tmp_path_factory)


def unpacked(name: str, factory: pytest.TempPathFactory) -> Results:
    directory = factory.mktemp("h100") / "study"
    unpack(ARCHIVES / f"{name}.tar.gz", directory)
    return load_results(directory)


def test_memory_after_loading_is_what_the_audit_found(results: Results) -> None:
    seen = 0
    for name, rung in results.rungs.items():
        assert rung.audit is not None and rung.audit.loaded_bytes is not None
        for record in results.of(name):
            assert isinstance(record.outcome, PerformanceOutcome)
            assert record.outcome.memory.loaded_bytes == pytest.approx(rung.audit.loaded_bytes, rel=0.01)
            seen += 1
    assert seen == 2 * len(results.rungs) == 16


def test_a_card_is_no_larger_than_its_limit_and_a_larger_batch_exceeds_it(limited: Results) -> None:
    """By the device's own figure, which counts the context and the kernels that torch's allocator knows nothing of."""
    limit_bytes, searched = 15 * GIB, set()
    for record in limited.records:
        outcome = record.outcome
        assert isinstance(outcome, PerformanceOutcome) and outcome.memory.idle_device_bytes is not None
        used = max(sample.gpu_memory_bytes or 0 for sample in outcome.resources)
        assert 0 < used - outcome.memory.idle_device_bytes <= limit_bytes
        if outcome.batch_search:
            searched.add(record.rung)
            failing = min((probe for probe in outcome.batch_search if not probe.fits), key=lambda one: one.batch_size)
            assert outcome.batch_size < failing.batch_size <= 1.04 * outcome.batch_size
            assert failing.needed_bytes is None or failing.needed_bytes > limit_bytes
            needed_bytes = failing.needed_bytes or math.inf  # of int8 0.1% more than there is, by its largest moment
            share = (used - outcome.memory.idle_device_bytes) / limit_bytes
            assert share > 0.97, "the card is full"
            assert share > 0.98 or needed_bytes < 1.002 * limit_bytes, record.rung
    assert searched == set(limited.rungs) and len(limited.records) == 2 * len(searched) == 16


def test_int8_is_a_third_as_fast_at_batch_1_and_nf4_alike_at_the_largest(results: Results) -> None:
    summary = summarize(results)
    int8, nf4 = summary.rung("int8"), summary.rung("nf4")
    assert int8 is not None and nf4 is not None
    at_one, at_most = int8.scenario("batch1"), nf4.scenario("max-batch")
    assert at_one is not None and at_most is not None
    slower, alike = at_one.metric("speedup"), at_most.metric("speedup")
    assert slower.high is not None and slower.high < 0.5
    assert alike.low is not None and alike.high is not None and alike.low < 1 < alike.high


def test_a_gpu_that_waits_for_the_processor_is_told(results: Results) -> None:
    """At batch 1 every precision waits for the launch of its kernels, at the largest batch none does."""
    idle = "the GPU was idle for more than half of the time"
    for rung in summarize(results).rungs:
        for scenario in rung.scenarios:
            if scenario.status == "ok":
                assert any(note.startswith(idle) for note in scenario.notes) == (scenario.scenario == "batch1"), (
                    rung.rung
                )


def test_energy_above_idle_is_of_a_card_that_was_idle_before(results: Results) -> None:
    """In all it is always told. What these records call idle was read after the search's batches, of 130 to 480 W."""
    for record in results.records:
        outcome = record.outcome
        assert isinstance(outcome, PerformanceOutcome) and outcome.idle_power_w is not None
        found = resource_metrics(outcome, "cuda:0", 20.0)
        watts = [value for _, value in Readings(outcome).series("gpu_power_w")]
        gross, above = found["gpu_energy_j"], found["gpu_energy_above_idle_j"]
        assert gross.value is not None and gross.value > 20 * min(watts)
        assert (above.value, above.reason) == (None, "the power of the idle GPU was read after batches had run on it")
        at_rest = outcome.model_copy(update={"idle_powers_w": (79.0, 80.0, 81.0)})
        above = resource_metrics(at_rest, "cuda:0", 20.0)["gpu_energy_above_idle_j"]
        assert above.value == pytest.approx(gross.value - 80 * 20)
        not_at_rest = outcome.model_copy(update={"idle_powers_w": (min(watts) + 20, min(watts) + 40)})
        above = resource_metrics(not_at_rest, "cuda:0", 20.0)["gpu_energy_above_idle_j"]
        assert above.value is None
        assert above.reason == (
            f"the GPU took {min(watts):.0f} W at work and {min(watts) + 30:.0f} W before, so it was not idle before"
        )


def test_what_another_process_took_of_the_card_is_noted(results: Results) -> None:
    """A CUDA context takes half a gigabyte; it came, or had been there and went."""
    summary = summarize(results)
    noted = {
        (rung.rung, scenario.scenario): note
        for rung in summary.rungs
        for scenario in rung.scenarios
        for note in scenario.notes
        if note.startswith("another process")
    }
    assert len(noted) == 7
    assert noted["int8", "max-batch"].startswith("another process took up to 529.1 MiB of the GPU meanwhile")
    assert noted["fp32", "batch1"].startswith("another process gave up 518.0 MiB of the GPU meanwhile")


def test_runs_on_different_machines_of_one_kind_are_noted(results: Results) -> None:
    """Three were measured later, on a host with other cards than the baseline's."""
    noted = {
        (rung.rung, scenario.scenario)
        for rung in summarize(results).rungs
        for scenario in rung.scenarios
        if any(note.startswith("measured on another machine of the same kind than bf16") for note in scenario.notes)
    }
    assert noted == {("fp4", "batch1"), ("fp4", "max-batch"), ("fp32", "max-batch")}


def test_rungs_that_cannot_be_told_apart_leave_the_baseline(results: Results) -> None:
    summary = summarize(results)
    answer = recommend(summary)
    assert answer.sentence.startswith("Deploy bf16 for latency (0.579 s [0.509 s, 0.658 s] a request at batch 1; fp32 ")
    assert "of peak memory at batch 1, 980.0 MiB of it weights); requests" in answer.sentence
    page = to_markdown(compose(results, summary, answer))
    assert "Table 3. Performance: batch size 1" in page and "Table 4. Performance: largest batch" in page
    assert "not measured yet" not in page
