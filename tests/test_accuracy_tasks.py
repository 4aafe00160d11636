"""From settings to items: suites, rows, limits, mirrors, few-shot examples, hashes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from bitladder.errors import UnknownNameError, UserError
from bitladder.records import Settings
from bitladder.study.resolved import task_request, task_sources
from bitladder.tasks.library import task_library, templates_kept
from bitladder.tasks.tasks import SUITES, TaskSet, resolve_tasks
from harness_tasks import SHARED_DATA, copy_tasks, write_mirror, write_mirror_task, write_tasks, write_yaml

needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no mirror in ../shared/data")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def tasks(tmp_path: Path, own_cache: None) -> Path:
    return write_tasks(tmp_path / "tasks")


def resolve(*names: str | Path, suite: str = "paper", **settings: Any) -> TaskSet:
    chosen = tuple(str(name) for name in names)
    asked = Settings(model="any", tasks=chosen, **({"trust_remote_code": True} | settings))
    return resolve_tasks(task_request(asked, suite), "cpu")


def test_a_folder_of_tasks(tasks: Path) -> None:
    found = resolve(tasks, limit=7)
    assert found.suite == "custom"
    assert [(row.name, row.title, row.tasks, row.in_aggregate) for row in found.groups] == [
        ("tiny", "tiny", ("tiny_choice", "tiny_long"), True),
        ("tiny_generate", "tiny_generate", ("tiny_generate",), True),
        ("tiny_last_word", "tiny_last_word", ("tiny_last_word",), True),
        ("tiny_prose", "tiny_prose", ("tiny_prose",), False),
        ("tiny_two_contexts", "tiny_two_contexts", ("tiny_two_contexts",), True),
    ]
    assert found.document_counts == {
        "tiny_choice": 7,
        "tiny_long": 5,
        "tiny_generate": 6,
        "tiny_last_word": 2,
        "tiny_prose": 3,
        "tiny_two_contexts": 2,
    }
    item = found.items[0]
    assert (item.task, item.limit, item.num_fewshot, item.batch_size, item.seed) == ("tiny_choice", 7, 0, 8, 1234)


def test_a_question_enters_the_aggregate_once(tasks: Path) -> None:
    found = resolve(tasks / "tiny_choice.yaml", tasks / "group.yaml")
    assert [(row.name, row.in_aggregate) for row in found.groups] == [("tiny_choice", False), ("tiny", True)]
    assert [item.task for item in found.items] == ["tiny_choice", "tiny_long"]


def test_limits_hold_for_tasks_rows_and_requests(tasks: Path) -> None:
    found = resolve(tasks, limit=9, limits={str(tasks): 4, "tiny": 3, "tiny_long": 2})
    limits = {item.task: item.limit for item in found.items}
    assert (limits["tiny_prose"], limits["tiny_choice"], limits["tiny_long"]) == (4, 3, 2)
    with pytest.raises(UnknownNameError, match=r"task in limits: 'tiny_choise'; nearest: tiny_choice"):
        resolve(tasks, limits={"tiny_choise": 2})


def test_relative_data_files_are_taken_from_the_yaml(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resolve("../tasks/tiny_choice.yaml").document_counts == {"tiny_choice": 13}
    (tasks / "tiny_choice.jsonl").unlink()
    with pytest.raises(UserError, match=r"task tiny_choice: no file .*tasks/tiny_choice\.jsonl"):
        resolve(tasks / "tiny_choice.yaml")


HASHES = """
import json, sys
import datasets
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
from bitladder.tasks.tasks import resolve_tasks
from bitladder.records import Settings
from bitladder.study.resolved import task_request
found = resolve_tasks(task_request(Settings(model="any", tasks=(sys.argv[1],), trust_remote_code=True), "paper"), "cpu")
print(json.dumps({item.task: item.task_hash for item in found.items}))
"""


def hashes(folder: Path) -> dict[str, str]:
    return {item.task: item.task_hash for item in resolve(folder).items}


@pytest.mark.slow
def test_task_hash_is_the_same_in_other_processes_places_and_working_directories(tasks: Path, tmp_path: Path) -> None:
    here = hashes(tasks)
    assert len(set(here.values())) == 6
    moved = copy_tasks(tasks, tmp_path / "moved" / "copy")
    ran = subprocess.run(
        [sys.executable, "-c", HASHES, "copy", str(tmp_path / "hf-other")],
        cwd=moved.parent,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(ran.stdout) == here


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("utils.py", "Question:", "Frage:", {"tiny_choice", "tiny_long"}),
        ("tiny_choice.yaml", "Answer:", "Antwort:", {"tiny_choice"}),
        ("tiny_prose.jsonl", "brown", "red", {"tiny_prose"}),
        ("tiny_long.yaml", "task_alias: Long", "task_alias: Longer", set()),
    ],
)
def test_task_hash_changes_with_all_that_changes_answers(
    tasks: Path, tmp_path: Path, file: str, old: str, new: str, changed: set[str]
) -> None:
    other = copy_tasks(tasks, tmp_path / "other")
    text = (other / file).read_text()
    assert old in text
    (other / file).write_text(text.replace(old, new))
    before, after = hashes(tasks), hashes(other)
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_limit_or_other_shots_make_another_task_hash(tmp_path: Path, own_cache: None) -> None:
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine", fewshot_split="validation")
    data = str(mirror)
    (plain,) = resolve(task, datasets=data).items
    (limited,) = resolve(task, datasets=data, limit=3).items
    (shots,) = resolve(task, datasets=data, num_fewshot=2).items
    assert len({plain.task_hash, limited.task_hash, shots.task_hash}) == 3
    assert (plain.num_fewshot, shots.num_fewshot) == (0, 2)


def test_a_mirror_is_read_from_any_directory_and_keeps_the_hub_name(
    tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mirror(tmp_path / "mirror")
    task = write_mirror_task(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    settings = Settings(model="any", tasks=(str(task),), datasets="../mirror", trust_remote_code=True)
    found = resolve_tasks(task_request(settings, "paper"), "cpu")
    assert found.document_counts == {"sums": 12}
    built = task_library(task_sources(settings)).task("sums")
    assert built.config.dataset_path == "tiny/sums"
    assert built.eval_docs[0]["query"] == "Question: 50 + 0 ="


def test_a_changed_mirror_is_read_anew(tmp_path: Path, own_cache: None) -> None:
    """`datasets` alone keeps the prepared copy under a hash of the card, and serves the old rows."""
    mirror = write_mirror(tmp_path / "mirror")
    before = resolve(write_mirror_task(tmp_path / "first"), datasets=str(mirror))
    path = mirror / "tiny/sums/high/test-00000-of-00001.parquet"
    datasets.Dataset.from_list([{"a": 1, "b": 2}]).to_parquet(str(path))
    after = resolve(write_mirror_task(tmp_path / "second"), datasets=str(mirror))
    assert (before.document_counts, after.document_counts) == ({"sums": 12}, {"sums": 1})
    assert before.items[0].task_hash != after.items[0].task_hash


def test_a_task_module_may_keep_the_function_that_reads_data(tmp_path: Path, own_cache: None) -> None:
    mirror = write_mirror(tmp_path / "mirror")
    utils = "from datasets import load_dataset\ndef read(**_):\n    return load_dataset('tiny/sums', 'low')\n"
    for name in ("one", "two"):
        path = write_mirror_task(tmp_path / "mine", custom_dataset="CUSTOM", process_docs=None, doc_to_text="{{a}}")
        text = path.read_text().replace("CUSTOM", "!function utils.read").replace("task: sums", f"task: {name}")
        path.with_name(f"{name}.yaml").write_text(text.replace("doc_to_target: gold", "doc_to_target: b"))
        path.unlink()
    (tmp_path / "mine" / "utils.py").write_text(utils)
    assert resolve(tmp_path / "mine" / "one.yaml", datasets=str(mirror)).document_counts == {"one": 12}
    with pytest.raises(UserError, match=r"task two: the mirror has no folder .*/empty/tiny/sums"):
        (tmp_path / "empty").mkdir()
        resolve(tmp_path / "mine" / "two.yaml", datasets=str(tmp_path / "empty"))


def test_what_a_mirror_can_lack(tmp_path: Path, own_cache: None) -> None:
    task = write_mirror_task(tmp_path / "mine")
    with pytest.raises(UserError, match=r"--datasets .*/nowhere: no such folder"):
        resolve(task, datasets=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"task sums: the mirror has no folder .*/empty/tiny/sums"):
        resolve(task, datasets=str(tmp_path / "empty"))
    for split in ("test", "train"):
        mirror = write_mirror(tmp_path / f"no-{split}", without_split=split)
        with pytest.raises(UserError, match=rf"task sums: .*tiny/sums has no split '{split}', it has .*'validation'"):
            resolve(task, datasets=str(mirror))
    mirror = write_mirror(tmp_path / "mirror")
    other = write_mirror_task(tmp_path / "other", dataset_name="middle")
    with pytest.raises(UserError, match=r"task sums: its data set .*/tiny/sums can't be read .*'middle' not found"):
        resolve(other, datasets=str(mirror))
    (mirror / "tiny/sums/high/test-00000-of-00001.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"task sums: its data set .*/tiny/sums can't be read .*arquet"):
        resolve(task, datasets=str(mirror))


def test_no_mirror_and_no_network(tmp_path: Path, own_cache: None) -> None:
    with pytest.raises(UserError, match=r"task sums: its data set tiny/sums can't be read .*--datasets DIR") as caught:
        resolve(write_mirror_task(tmp_path / "mine"))
    assert "\n" not in str(caught.value)
    assert "Offline" not in str(caught.value), "nobody asked for that"


def test_few_shot_examples_are_never_drawn_from_a_placeholder(tmp_path: Path, own_cache: None) -> None:
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine")
    for shots in (1, 2):
        with pytest.raises(UserError, match=rf"task sums: {shots} few-shot .* has 1 row \(a placeholder\)"):
            resolve(task, datasets=str(mirror), num_fewshot=shots)
    validation = write_mirror_task(tmp_path / "other", fewshot_split="validation")
    assert resolve(validation, datasets=str(mirror), num_fewshot=6).items[0].num_fewshot == 6
    with pytest.raises(UserError, match="7 few-shot examples wanted, the split they are drawn from has 6 rows;"):
        resolve(validation, datasets=str(mirror), num_fewshot=7)
    asked = write_mirror_task(tmp_path / "asked", fewshot_split="test")
    with pytest.raises(UserError, match=r"12 few-shot examples wanted, .* has 12 rows"):
        resolve(asked, datasets=str(mirror), num_fewshot=12)


def test_a_task_that_fixes_zero_shots_keeps_them(tmp_path: Path, own_cache: None) -> None:
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine", num_fewshot=0)
    assert resolve(task, datasets=str(mirror), num_fewshot=3).items[0].num_fewshot == 0


def test_settings_of_a_group_reach_its_tasks(tmp_path: Path, own_cache: None) -> None:
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine")
    member = {"task": "sums", "num_fewshot": 4, "fewshot_split": "validation", "dataset_name": "low"}
    write_yaml(tmp_path / "mine" / "shots.yaml", {"group": "shots", "task": [member]})
    group = tmp_path / "mine" / "shots.yaml"
    settings = Settings(model="any", tasks=(str(group),), datasets=str(mirror), trust_remote_code=True)
    (item,) = resolve_tasks(task_request(settings, "paper"), "cpu").items
    assert (item.task, item.num_fewshot) == ("sums", 4)
    assert task_library(task_sources(settings)).task("sums").eval_docs[0]["query"] == "Question: 0 + 0 ="
    with pytest.raises(UserError, match="task sums is asked for twice with other settings"):
        resolve(group, task, datasets=str(mirror))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_txt": "{{query}}"}, r"unknown key in .*sums.yaml: 'doc_to_txt'; nearest: doc_to_text"),
        ({"output_type": "multiple_choise"}, "nearest: multiple_choice"),
        ({"dataset_path": None}, "has no `dataset_path`"),
        ({"test_split": None, "validation_split": None}, "no `test_split` and no `validation_split`"),
        ({"doc_to_text": "{{querry}}"}, "a template in .* fails on its first document: 'querry' is undefined"),
        ({"unsafe_code": True}, "runs code that the model wrote"),
        ({"doc_to_image": "picture"}, "images or sound"),
    ],
)
def test_a_wrong_definition_is_one_line(tmp_path: Path, own_cache: None, changes: dict[str, Any], message: str) -> None:
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine", **changes)
    with pytest.raises(UserError, match=message) as caught:
        resolve(task, datasets=str(mirror))
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path: Path, own_cache: None) -> None:
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine")
    (tmp_path / "mine" / "utils.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match=r"task sums: lm-eval needs a package for it .*no_such_package"):
        resolve(task, datasets=str(mirror))


def test_a_task_without_documents(tmp_path: Path, own_cache: None) -> None:
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine")
    (tmp_path / "mine" / "utils.py").write_text("def add_question(docs):\n    return docs.select([])\n")
    with pytest.raises(UserError, match="task sums: no documents"):
        resolve(task, datasets=str(mirror))
    path = mirror / "tiny/sums/high/test-00000-of-00001.parquet"
    datasets.Dataset.from_parquet(str(path)).select([]).to_parquet(str(path))
    with pytest.raises(UserError, match=r"its data set .*/tiny/sums can't be read .*no data"):
        resolve(write_mirror_task(tmp_path / "again"), datasets=str(mirror))


def test_unknown_suite() -> None:
    with pytest.raises(UnknownNameError, match="unknown suite 'papr'; nearest: paper"):
        resolve_tasks(task_request(Settings(model="any"), "papr"), "cpu")


def test_the_papers_rows_are_those_of_its_table_1() -> None:
    assert [row.title for row in SUITES["paper"]] == [
        "ARC-Challenge",
        "ARC-Easy",
        "GSM8K (strict, CoT)",
        "HellaSwag",
        "MMLU",
        "MMLU humanities",
        "MMLU other",
        "MMLU social sciences",
        "MMLU STEM",
    ]


@pytest.mark.slow
@needs_shared_data
def test_paper_suite_from_the_mirror() -> None:
    found = resolve(datasets=str(SHARED_DATA), limit=2)
    assert found.suite == "paper"
    rows = {row.name: row for row in found.groups}
    assert {name: len(row.tasks) for name, row in rows.items() if len(row.tasks) > 1} == {
        "gsm8k": 2,
        "mmlu": 57,
        "mmlu_humanities": 13,
        "mmlu_other": 13,
        "mmlu_social_sciences": 12,
        "mmlu_stem": 19,
    }
    assert [name for name, row in rows.items() if row.in_aggregate] == [
        "arc_challenge",
        "arc_easy",
        "gsm8k",
        "hellaswag",
        "mmlu",
    ]
    assert rows["gsm8k"].pooling == "mean"
    shots = {item.task: item.num_fewshot for item in found.items}
    assert (shots["gsm8k"], shots["gsm8k_cot"], shots["mmlu_anatomy"], shots["hellaswag"]) == (5, 8, 0, 0)
    assert sum(found.document_counts.values()) == 2 * len(found.items) == 2 * 62


BUILD_TIME = """
import sys, time
start = time.perf_counter()
from bitladder.tasks.tasks import resolve_tasks
from bitladder.records import Settings
from bitladder.study.resolved import task_request
tasks = ("arc_easy", "arc_challenge", "hellaswag", "mmlu_stem")
found = resolve_tasks(task_request(Settings(model="any", tasks=tasks, datasets=sys.argv[1], limit=5), "paper"), "cpu")
assert len(found.items) == 22
assert "torch" not in sys.modules
print(time.process_time())
"""


@pytest.mark.slow
@needs_shared_data
def test_building_tasks_is_quick_and_silent(tmp_path: Path) -> None:
    """lm-eval's index alone takes 14 to 18 core-seconds; the whole process here a few, once the data are cached."""
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", BUILD_TIME, str(SHARED_DATA)],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        assert ran.stderr == ""
        if float(ran.stdout) < 6:
            break
    assert float(ran.stdout) < 6


def test_a_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import utils

    compiled: list[str] = []
    compile_template = utils.env.compile

    def compile_it(text: str, *rest: Any, **more: Any) -> Any:
        compiled.append(text)
        return compile_template(text, *rest, **more)

    monkeypatch.setattr(utils.env, "compile", compile_it)
    with templates_kept():
        assert [utils.apply_template("{{a}}!", {"a": number}) for number in range(3)] == ["0!", "1!", "2!"]
    assert compiled == ["{{a}}!"]
    assert [utils.apply_template("{{a}}!", {"a": number}) for number in range(2)] == ["0!", "1!"]
    assert len(compiled) == 3


def test_a_cluster_that_no_document_has_is_refused(tasks: Path) -> None:
    path = tasks / "tiny_choice.yaml"
    path.write_text(path.read_text() + "\nmetadata:\n  cluster: passage_id\n")
    with pytest.raises(UserError, match="tiny_choice: metadata: cluster: no document has the field passage_id; found "):
        resolve(path)
