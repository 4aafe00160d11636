"""Settings from flags and study.yaml, and the plan that follows from them."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import bitladder
from bitladder.errors import UserError
from bitladder.records import (
    AccuracyTask,
    Calibration,
    LayerRate,
    Machine,
    Scenario,
    Settings,
    Source,
    StudyRecord,
    measurement_id,
)
from bitladder.study.estimate import s_per_weight
from bitladder.study.plan import phase_items
from bitladder.study.resolved import task_request
from bitladder.study.settings import load_command
from bitladder.units import GIB

MACHINE = Machine(cpu_model="c", cpu_count=2, total_memory_bytes=8, platform="p", gpus=(), versions={})


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    return load_command(config, flags)[1]


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text("model: some/model\nlimit: 5\nrungs: [bf16, nf4]\n")
    settings = load_settings(config, {"limit": 7, "seed": None})
    assert (settings.model, settings.limit, settings.rungs, settings.seed) == ("some/model", 7, ("bf16", "nf4"), 1234)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: m\nlimitt: 5\n", "unknown key in .*'limitt'; nearest: limit, limits"),
        ("model: m\nlimit: many\n", "limit: found 'many', expected a whole number"),
        ("model: m\nlimit: 0\n", "limit: found 0, expected 1 or more"),
        ("model: m\nrungs: [bf16, nf5]\n", "unknown rung 'nf5'; nearest: nf4"),
        ("model: m\nrungs: [bf16, bf16]\n", "bf16 stands more than once"),
        ("model: m\nonly: speed\n", "only: found 'speed', expected 'accuracy' or 'performance'"),
        ("model: m\nrungs: []\n", "rungs: found none, expected one name or several"),
        ("model: m\nsuite: papr\n", "unknown suite 'papr'; nearest: paper"),
        ("model: m\ndevice: gpu\n", "device: found 'gpu', expected auto, cpu"),
        ("model: m\nmemory_limit: 15\n", "memory-limit: found '15', expected a size with its unit such as 2GiB"),
        ("limit: 5\n", "no model"),
        ("model: m\nlimits: {a: x}\n", "limits.a: found 'x', expected a whole number"),
        ("model: m\nseed: 1.5\n", "seed: found 1.5, expected a whole number"),
        ("model: m\ndivergence: maybe\n", "divergence: found 'maybe', expected true or false"),
        ("model: m\nlimits: a\n", "study.yaml: limits: found 'a', expected task=number pairs"),
        ("model: m\nadd: [fp8]\n", "study.yaml: add: found 'fp8', expected NAME=REPO_OR_DIR"),
        (
            "model: m\nno-divergence: true\ndivergence: true\n",
            "divergence stands twice, once as divergence",
        ),
        ("model: m\nyes: maybe\n", "study.yaml: yes: found 'maybe', expected true or false"),
        ("model: m\nlimit: 5\nseed: 1\nlimit: 6\n", "study.yaml: limit stands in line 2 and in line 4; keep one"),
        ("model: m\nlimits:\n  a: 5\n  a: 6\n", "study.yaml: a stands in line 3 and in line 4; keep one"),
        ("- a\n", "found a list, expected keys and values"),
        ("a: [\n", "not YAML"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_command(config, {})
    assert "\n" not in str(caught.value)


def test_a_list_may_be_one_string(tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text("model: m\ntasks: arc_easy\nrungs: bf16, nf4\nmemory_limit: 15GiB\n")
    settings = load_settings(config, {"scenarios": "batch1"})
    assert (settings.tasks, settings.rungs, settings.scenarios) == (("arc_easy",), ("bf16", "nf4"), ("batch1",))
    assert settings.memory_limit == 15 * GIB


@pytest.mark.parametrize("kind", [str, Path])
def test_where_the_datasets_are_is_kept_whole(kind: type) -> None:
    """A flag is a path, a file's value a text."""
    assert load_command(None, {"model": "m", "datasets": kind("data")})[1].datasets == str(Path.cwd() / "data")


def test_keys_of_the_file_are_the_flags_names_and_take_what_they_take(tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(
        "model: m\nprompt-tokens: 9\nnew_tokens: 8\nno-divergence: true\nlimits: arc_easy=5\nrequests: batch1=2\n"
        "add: [fp8=some/repo]\nmax-drop: 1pt\nout: there\nyes: true\njson: true\ndry-run: true\n"
    )
    command, settings = load_command(config, {"prompt_tokens": 7})
    assert (settings.prompt_tokens, settings.new_tokens, settings.divergence) == (7, 8, False)
    assert (settings.limits, settings.requests, settings.max_drop) == ({"arc_easy": 5}, {"batch1": 2}, 1.0)
    assert settings.add == {"fp8": "some/repo"}
    assert (command.out, command.yes, command.json_output, command.dry_run) == (Path("there"), True, True, True)
    assert load_command(config, {"out": Path("here")})[0].out == Path("here"), "flags win"


def test_several_cards_are_a_device() -> None:
    assert load_settings(None, {"model": "m", "device": "cuda:0,1"}).device == "cuda:0,1"
    with pytest.raises(UserError, match=r"--device: found 'cuda:1,1', expected .* cuda:N,M for several, each once"):
        load_settings(None, {"model": "m", "device": "cuda:1,1"})


def test_a_suite_and_tasks_are_one_too_many_in_one_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--suite, --tasks: found a suite and tasks"):
        load_settings(None, {"model": "m", "suite": "paper", "tasks": "arc_easy"})
    (tmp_path / "study.yaml").write_text("model: m\nsuite: paper\n")
    assert load_settings(tmp_path / "study.yaml", {"tasks": "arc_easy"}).tasks == ("arc_easy",), "flags win"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"only": "performance", "limit": 5}, "--limit: found --only performance, which asks no questions"),
        ({"only": "performance", "tasks": "arc_easy"}, "--tasks: found --only performance"),
        ({"only": "performance", "num_fewshot": 0}, "--num-fewshot: found --only performance"),
        ({"only": "performance", "max_drop": "1pt"}, "--max-drop: found --only performance"),
        ({"only": "performance", "divergence": True}, "--divergence: found --only performance"),
        ({"only": "accuracy", "requests": 5}, "--requests: found --only accuracy, which runs no scenario"),
        ({"divergence": False, "divergence_windows": 9}, "--divergence-windows: found --no-divergence"),
        ({"scenarios": "batch1", "max_batch_cap": 4}, "--max-batch-cap: found --scenarios without max-batch"),
        ({"batch_size": 4}, "--batch-size: found the backend bitladder, which packs by --token-budget"),
        ({"backend": "hf", "token_budget": 512}, "--token-budget: found --backend hf, which takes --batch-size"),
    ],
)
def test_what_does_nothing_beside_another_setting_is_refused(
    given: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        load_settings(None, {"model": "m", **given})
    config = tmp_path / "study.yaml"
    first, *others = given
    config.write_text(f"model: m\n{others[0] if others else first}: {given[others[0] if others else first]}\n")
    if others:  # of a file it may be for another run
        assert load_settings(config, {first: given[first]}).model == "m"


def test_rows_of_a_batch_are_in_no_identity_but_that_of_who_asks_so(tmp_path: Path) -> None:
    from bitladder.tasks.tasks import resolve_tasks
    from test_study_run import write_tasks

    tasks = str(write_tasks(tmp_path))
    sizes = {
        (backend, size): {
            item.batch_size
            for item in resolve_tasks(
                task_request(
                    Settings(model="m", tasks=(tasks,), datasets=tasks, backend=backend, batch_size=size), "custom"
                ),
                "cpu",
            ).items
        }
        for backend in ("hf", "bitladder")
        for size in (4, 16)
    }
    assert sizes == {("hf", 4): {4}, ("hf", 16): {16}, ("bitladder", 4): {8}, ("bitladder", 16): {8}}


def test_an_unknown_metric_is_found_with_the_plan(tmp_path: Path) -> None:
    from bitladder.tasks.tasks import resolve_tasks
    from test_study_run import write_tasks

    tasks = write_tasks(tmp_path)
    (tasks / "left.yaml").write_text((tasks / "left.yaml").read_text().replace("metric: acc", "metric: acuracy"))
    settings = Settings(model="m", tasks=(str(tasks),), datasets=str(tasks))
    with pytest.raises(UserError, match=r"'acuracy' of `evaluate`, which is a script \(lm-eval has 'acc'\)"):
        resolve_tasks(task_request(settings, "custom"), "cpu")
    trusting = settings.model_copy(update={"trust_remote_code": True})
    with pytest.raises(UserError, match=r"unknown metric of task left: 'acuracy'; nearest: .*acc"):
        resolve_tasks(task_request(trusting, "custom"), "cpu")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_settings(tmp_path / "absent.yaml", {})


def make_task(name: str, limit: int | None = None) -> AccuracyTask:
    return AccuracyTask(
        task=name,
        task_hash="t",
        limit=limit,
        num_fewshot=0,
        batch_size=8,
        seed=1,
        chat_template=False,
        device="cpu",
        harness_version="0",
    )


def make_scenario(requests: int = 200) -> Scenario:
    return Scenario(
        scenario="batch1",
        batch_size_cap=1,
        requests=requests,
        prompt_tokens=8,
        new_tokens=4,
        prompts_hash="p",
        seed=1,
        device="cpu",
        engine="eager",
        threads=2,
        half_width_target=0.02,
        time_limit_s=60,
    )


def test_all_tasks_share_a_worker_and_each_scenario_has_its_own() -> None:
    study = StudyRecord(
        settings=Settings(model="m"),
        suite="custom",
        baseline="bf16",
        source=Source(model="m", kind="directory", revision=None, content_hash="s"),
        calibration=Calibration(device="cpu", threads=2, max_batch_cap=8, machine=MACHINE),
        groups=(),
        items=(make_task("a"), make_task("b"), make_scenario(), make_scenario(5)),
    )
    assert [len(items) for items in phase_items(study)] == [2, 1, 1]


def test_identity_follows_content_and_every_setting() -> None:
    ids = {
        measurement_id("x", make_task("a")),
        measurement_id("y", make_task("a")),
        measurement_id("x", make_task("a", 5)),
        measurement_id("x", make_task("b")),
        measurement_id("x", make_scenario()),
        measurement_id("x", make_scenario(5)),
    }
    assert len(ids) == 6
    assert measurement_id("x", make_task("a")) in ids


def test_layer_times_are_linear_between_and_beyond_the_measured_rows() -> None:
    rates = [LayerRate(rung="r", rows=rows, s_per_weight=s) for rows, s in ((1, 1.0), (8, 1.7), (256, 26.5))]
    assert s_per_weight(rates, 1) == 1.0
    assert s_per_weight(rates, 4.5) == pytest.approx(1.35)
    assert s_per_weight(rates, 512) == pytest.approx(52.1)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (10, 10),
        ("10", 10),
        ({"max-batch": "40"}, {"max-batch": 40}),
    ],
)
def test_requests_are_of_all_scenarios_or_of_each(given: object, found: object) -> None:
    assert load_settings(None, {"model": "m", "requests": given}).requests == found


@pytest.mark.parametrize("given", ["x", {"batch": 1}, 0, 1.5, {"batch1": 0}])
def test_requests_that_are_no_numbers_are_refused(given: object) -> None:
    with pytest.raises(UserError, match="--requests: found"):
        load_settings(None, {"model": "m", "requests": given})


def test_nobody_after_the_plan_takes_all_settings() -> None:
    """Each room takes its own part of them, which `resolve` makes."""
    package = Path(bitladder.__file__).parent
    takers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.arg | ast.AnnAssign) and ast.unparse(node.annotation or node) == "Settings"
    }
    assert takers == {
        "records/study.py",
        "cli/dry_run.py",
        "study/settings.py",
        "study/resolved.py",
        "study/prepare.py",
        "study/run.py",
    }
