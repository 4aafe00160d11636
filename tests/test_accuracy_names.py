"""The index of task names against lm-eval's own, and what a name expands to."""

from pathlib import Path

import pytest
import yaml
from lm_eval.tasks import TaskManager

from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.tasks import registry
from bitladder.tasks.expansion import Group, LeafTask, Member, expand

# Odd ones among them: inherited tags, quoted keys, inline groups, Python classes, groups in one file with tasks.
FOLDERS = ("mmlu", "glue", "wmdp", "mmlusr", "lambada", "leaderboard", "squadv2", "minerva_math", "truthfulqa")


@pytest.mark.parametrize("folder", FOLDERS)
def test_scan_finds_what_lm_eval_indexes(folder: str) -> None:
    root = registry.harness_tasks() / folder
    scanned = registry.scan(root)
    indexed = TaskManager(include_defaults=False, include_path=str(root)).task_index
    kinds = {name: entry.kind.name.removeprefix("PY_").lower() for name, entry in indexed.items()}
    assert {name: entry.kind for name, entry in scanned.items()} == kinds
    assert {name: entry.file for name, entry in scanned.items()} == {n: e.yaml_path for n, e in indexed.items()}
    tags = {name: tuple(sorted(entry.tags)) for name, entry in indexed.items() if entry.kind.name == "TAG"}
    assert {name: entry.tasks for name, entry in scanned.items() if entry.kind == "tag"} == tags


def test_names_are_kept_in_the_cache_and_scanned_again_for_another_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lm_eval" / "one").mkdir(parents=True)
    (tmp_path / "lm_eval" / "one" / "a.yaml").write_text("task: first\n")
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "harness_tasks", lambda: tmp_path / "lm_eval")
    scans: list[Path] = []
    scan = registry.scan

    def counted_scan(root: Path) -> dict[str, registry.Definition]:
        scans.append(root)
        return scan(root)

    monkeypatch.setattr(registry, "scan", counted_scan)
    names = registry._harness_names()
    assert registry._harness_names() == names
    assert list(names) == ["first"]
    assert len(scans) == 1
    (tmp_path / "lm_eval" / "one" / "b.yaml").write_text("task: second\n")
    assert sorted(registry._harness_names()) == ["first", "second"]


def leaves(members: tuple[Member, ...]) -> list[LeafTask]:
    return [leaf for member in members for leaf in (member.leaves() if isinstance(member, Group) else (member,))]


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("ai2_arc", 2, {"arc_easy", "arc_challenge"}),
        ("glue", 9, {"cola", "mnli", "sst2"}),
        ("truthfulqa_mc1", 1, {"truthfulqa_mc1"}),
        ("winogrande", 1, {"winogrande"}),
        ("lambada_openai", 1, {"lambada_openai"}),
        ("minerva_math", 7, {"minerva_math_algebra"}),
        ("leaderboard", 39, {"leaderboard_mmlu_pro", "leaderboard_ifeval", "leaderboard_bbh_navigate"}),
        ("mmlu", 57, {"mmlu_anatomy", "mmlu_world_religions"}),
        ("squadv2", 1, {"squadv2"}),
    ],
)
def test_expansion_of_names_groups_and_tags(name: str, count: int, some: set[str]) -> None:
    found = [leaf.name for leaf in leaves(expand(name))]
    assert len(found) == len(set(found)) == count
    assert some <= set(found)


def test_expansion_agrees_with_a_group_that_lm_eval_builds() -> None:
    """mmlu's groups refer to tags of their own folder."""
    (mmlu,) = expand("mmlu")
    assert isinstance(mmlu, Group)
    assert (mmlu.pooling, mmlu.has_one_score) == ("documents", True)
    assert {member.name: len(list(member.leaves())) for member in mmlu.members if isinstance(member, Group)} == {
        "mmlu_humanities": 13,
        "mmlu_other": 13,
        "mmlu_social_sciences": 12,
        "mmlu_stem": 19,
    }


def test_a_group_hands_its_settings_on_to_members_elsewhere() -> None:
    by_name = {leaf.name: leaf for leaf in leaves(expand("openllm"))}
    assert by_name["arc_challenge"].overrides == {"fewshot_split": "train", "num_fewshot": 25}
    assert by_name["mmlu_anatomy"].overrides == {"num_fewshot": 5}
    assert by_name["mmlu_anatomy"].config["dataset_name"] == "anatomy"


def test_mixed_metrics_are_no_one_score() -> None:
    (leaderboard,) = expand("leaderboard")
    assert isinstance(leaderboard, Group)
    assert not leaderboard.has_one_score


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown task 'arc_eazy'; nearest: arc_easy"):
        expand("arc_eazy")
    with pytest.raises(UnknownNameError, match="no_such_task"):
        expand("no_such_task")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "not YAML"),
        ("- just\n- a list", "found list, expected the keys"),
        ("doc_to_text: x", "no `task` or `group` with a name"),
        ("group: g\ntask: [{output_type: x}]", "expected a name"),
        ("task: t\ninclude: missing.yaml", "no such file"),
    ],
)
def test_broken_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BrokenFileError, match=message) as caught:
        expand(str(path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \*\.yaml in it defines"):
        expand(str(tmp_path))


def test_a_folder_stands_for_its_outer_groups_and_its_lone_tasks(tmp_path: Path) -> None:
    for name, config in {
        "a": {"task": "a"},
        "b": {"task": "b", "tag": ["both"]},
        "c": {"task": "c", "tag": "both"},
        "inner": {
            "group": "inner",
            "task": ["both"],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}],
        },
        "outer": {"group": "outer", "group_alias": "All", "num_fewshot": 2, "task": ["inner", "arc_easy"]},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    outer, lone = expand(str(tmp_path))
    assert isinstance(outer, Group)
    assert (outer.name, outer.title, outer.pooling, lone.name) == ("outer", "All", None, "a")
    assert [leaf.name for leaf in outer.leaves()] == ["b", "c", "arc_easy"]
    assert {leaf.config["num_fewshot"] for leaf in outer.leaves()} == {2}
    inner = outer.members[0]
    assert isinstance(inner, Group)
    assert inner.pooling == "mean"
