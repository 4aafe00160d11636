"""Tasks of the user's own: what runs Python is asked for, templates are in a sandbox, what is wrong is a line."""

import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from bitladder.errors import UserError
from bitladder.records import Settings
from bitladder.study.resolved import task_request, task_sources
from bitladder.tasks import registry
from bitladder.tasks.expansion import expand
from bitladder.tasks.library import as_we_run_it, sandbox_templates, task_library
from bitladder.tasks.registry import harness_tasks, is_own, read_task_yaml
from bitladder.tasks.tasks import accuracy_texts, resolve_tasks

ROWS = [{"q": f"q{index}", "gold": index % 2} for index in range(4)]
TASK: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "d.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_target": "gold",
    "doc_to_choice": ["a", "b"],
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


class Folder:
    """A task's folder, whose ``evil.py`` leaves a mark when it is imported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark = path / "OWNED"
        path.mkdir()
        (path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        code = f"open({str(self.mark)!r}, 'w')\ndef fn(docs): return docs\n"
        (path / "evil.py").write_text(code)

    def task(self, text: str = "", **changes: Any) -> Path:
        config = {key: value for key, value in (TASK | changes).items() if value is not None}
        return self.write("mine.yaml", yaml.safe_dump(config, sort_keys=False) + text)

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "tasks")


def settings(path: Path, **changes: Any) -> Settings:
    return Settings(model="any", tasks=(str(path),), **changes)


def resolve(path: Path, **changes: Any) -> dict[str, int]:
    return resolve_tasks(task_request(settings(path, **changes), "paper"), "cpu").document_counts


def refused(path: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        resolve(path, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


RUNS_PYTHON: dict[str, tuple[str, str]] = {
    "function": ("process_docs: !function evil.fn", "!function evil.fn in {folder}/mine.yaml"),
    "overwritten": ("process_docs: !function evil.fn\nprocess_docs: null", "!function evil.fn"),
    "nested": ("filter_list: [{name: x, filter: [{function: custom, filter_fn: !function evil.fn}]}]", "evil.fn"),
    "key": ("metadata: {!function evil.fn : 1}", "!function evil.fn"),
    "metric": ("metric_list: [{metric: !function evil.fn, aggregation: mean}]", "evil.fn"),
    "data": ("custom_dataset: !function evil.fn", "evil.fn"),
    "few-shot": ("fewshot_config: {samples: !function evil.fn}", "evil.fn"),
    "any module": ("doc_to_decontamination_query: !function os.system", "!function os.system"),
    "class": ("class: !function evil.fn", "!function evil.fn"),
    "script": ("metric_list: [{metric: ./evil}]", "the metric './evil' of `evaluate`, which is a script"),
    "named as one": ("metric_list: [{metric: acc, hf_evaluate: true}]", "the metric 'acc' of `evaluate`"),
    "included": ("include: inner.yaml\nprocess_docs: null", "!function evil.fn in {folder}/inner.yaml"),
}


@pytest.mark.parametrize("kind", RUNS_PYTHON)
def test_python_is_named_and_not_run(folder: Folder, kind: str) -> None:
    text, named = RUNS_PYTHON[kind]
    folder.write("inner.yaml", "process_docs: !function evil.fn\n")
    without = {key: None for key in ("metric_list",) if key in text}
    path = folder.task(text + "\n", **without)
    message = refused(path)
    assert message.startswith("task mine: it runs Python of its own, ")
    assert named.format(folder=folder.path.resolve()) in message
    assert message.endswith("read that, and give --trust-remote-code to let it run")
    assert not folder.mark.exists()


def test_python_runs_once_it_may(folder: Folder) -> None:
    path = folder.task("process_docs: !function evil.fn\n")
    assert resolve(path, trust_remote_code=True) == {"mine": 4}
    assert folder.mark.exists()


def test_all_that_run_python_are_counted_and_groups_hand_it_on(folder: Folder) -> None:
    for name in ("a", "b", "c"):
        folder.write(f"{name}.yaml", yaml.safe_dump(TASK | {"task": name}) + "process_docs: !function evil.fn\n")
    assert "task a: " in refused(folder.path) and ", and so do 2 more; " in refused(folder.path)
    group = folder.write("g.yaml", "group: g\nprocess_docs: !function evil.fn\ntask: [arc_easy]\n")
    assert "task arc_easy: it runs Python of its own, !function evil.fn" in refused(group)
    group.write_text("group: g\ntask: [{task: arc_easy, include: a.yaml}]\n")
    assert "can't include 'a.yaml'" in refused(group)
    assert not folder.mark.exists()


def test_lm_evals_own_functions_need_no_word(folder: Folder) -> None:
    base = harness_tasks() / "hellaswag" / "hellaswag.yaml"
    path = folder.write("h.yaml", f"include: {base}\ntask: mine\n")
    functions = read_task_yaml(path).functions
    assert [str(name) for name in functions] == ["utils.process_docs"] and not is_own(functions[0].file)
    assert task_library(task_sources(settings(path))).requested
    assert task_library(task_sources(Settings(model="any", tasks=("hellaswag",)))).requested


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('true') }}",
        "{{ ''|attr('__cl' ~ 'ass__') }}",
        "{{ q.format.__self__ }}",
    ],
)
def test_templates_reach_nothing_of_python(folder: Folder, template: str) -> None:
    message = refused(folder.task(doc_to_text=template))
    assert f"task mine: a template in {folder.path}/mine.yaml fails on its first document" in message
    assert "is unsafe" in message or "has no attribute '__self__'" in message


def test_a_template_that_fails_at_a_later_document(folder: Folder) -> None:
    chosen = settings(folder.task(doc_to_text="{% if q == 'q3' %}{{ q.__class__ }}{% endif %}{{q}}"))
    items = resolve_tasks(task_request(chosen, "paper"), "cpu").items
    with pytest.raises(
        UserError, match=r"task mine: lm-eval fails at what .*mine.yaml says \(SecurityError: access to"
    ):
        list(accuracy_texts(task_sources(chosen), items))


def test_the_sandbox_renders_what_lm_eval_does() -> None:
    """No template of lm-eval's has what a sandbox treats otherwise; here what comes nearest to it."""
    from jinja2 import Environment, StrictUndefined
    from lm_eval.utils import regex_replace

    plain = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    plain.filters["regex_replace"] = regex_replace
    sandbox_templates()
    import lm_eval.utils

    doc = {"a": [3, 1], "_b": {"c": "x y"}, "text": " T\n"}
    with as_we_run_it(1):
        for template in (
            "{% for i in range(a|length) %}{{i}}.{{a[i]}}{% endfor %}\n",
            "{{ _b.c.split()[1] }}{{ _b['c'].replace('x', '<&>') }}{{text.strip()}}{{ a.index(1) }}",
            "{{ text|regex_replace('T', 'U') }}{{ a|join(', ') }}{{ '{}'.format(a) }}",
        ):
            assert lm_eval.utils.apply_template(template, doc) == plain.from_string(template).render(**doc)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
ENDLESS: dict[str, tuple[dict[str, str], str]] = {
    "includes itself": ({"mine.yaml": "task: t\ninclude: mine.yaml"}, "includes itself ("),
    "includes in a circle": (
        {"mine.yaml": "task: t\ninclude: a.yaml", "a.yaml": "include: [b.yaml]", "b.yaml": "include: mine.yaml"},
        "mine.yaml -> ",
    ),
    "includes twice": (
        {
            "mine.yaml": yaml.safe_dump(TASK | {"include": ["a.yaml", "b.yaml"]}),
            "a.yaml": "include: c.yaml",
            "b.yaml": "include: c.yaml",
            "c.yaml": "repeats: 1",
        },
        "Include cycle",
    ),
    "a long chain": (
        {"mine.yaml": "task: t\ninclude: c0.yaml", **{f"c{n}.yaml": f"include: c{n + 1}.yaml" for n in range(99)}},
        "more than 50 files that include each other",
    ),
    "includes nothing": ({"mine.yaml": "task: t\ninclude: [5]"}, "include: found 5"),
    "includes a folder": ({"mine.yaml": "task: t\ninclude: ."}, "no file, but"),
    "a group of itself": ({"mine.yaml": "group: g\ntask: [g]"}, "group g is a member of itself (g -> g)"),
    "groups in a circle": (
        {"mine.yaml": "group: a\ntask: [b]", "b.yaml": "group: b\ntask: [{group: c}]", "c.yaml": "group: c\ntask: [a]"},
        "member of itself (a -> b -> c -> a)",
    ),
    "deep groups": (
        {"mine.yaml": "group: g\ntask: [g0]", **{f"g{n}.yaml": f"group: g{n}\ntask: [g{n + 1}]" for n in range(99)}},
        "more than 50 groups inside each other",
    ),
    "many members": (
        {
            "mine.yaml": "group: g\ntask: [g0]",
            "t.yaml": "task: t",
            **{f"g{n}.yaml": f"group: g{n}\ntask: [g{n + 1}, g{n + 1}]" for n in range(18)},
            "g18.yaml": "group: g18\ntask: [t, t]",
        },
        "more than 50,000 tasks and groups",
    ),
    "aliases": ({"mine.yaml": f"task: t\n{BOMB}"}, "more than 1,000,000 values"),
    "an alias of itself": ({"mine.yaml": "task: t\nmetadata: &m {x: [*m]}"}, "nested beyond 50 levels"),
    "deep": ({"mine.yaml": f"task: t\nmetadata: {'[' * 500}{']' * 500}"}, "nested beyond 50 levels"),
    "very deep": ({"mine.yaml": f"task: t\nmetadata: {'[' * 100_000}{']' * 100_000}"}, "not YAML"),
    "python": ({"mine.yaml": "task: t\nx: !!python/object/apply:os.system [ls]"}, "not YAML: could not determine"),
    "no date": ({"mine.yaml": "task: t\nx: 2001-99-99"}, "not YAML: month must be"),
    "no number": ({"mine.yaml": "task: t\nx: !!timestamp z"}, "not YAML"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDLESS)
def test_what_has_no_end_is_one_line(folder: Folder, kind: str) -> None:
    files, message = ENDLESS[kind]
    for name, text in files.items():
        folder.write(name, text)
    assert message in refused(folder.path / "mine.yaml")


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def card(text: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "set").mkdir()
        (folder / "set" / "test.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
        (folder / "set" / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def file(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def links(folder: Path) -> None:
    (folder / "set").mkdir()
    for name in ("a", "b"):
        (folder / "set" / name).symlink_to(".")


def pipe(folder: Path) -> None:
    (folder / "set").mkdir()
    os.mkfifo(folder / "set" / "x.jsonl")


class _Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("OWNED",)


SET: dict[str, Any] = {"dataset_path": "set", "dataset_kwargs": None}
BAD_DATA: dict[str, tuple[dict[str, Any], Callable[[Path], None] | None, str]] = {
    "card: no yaml": (SET, card("---\nconfigs: [\n---\n"), "can't be read (ParserError: "),
    "card: a tab": (SET, card("---\n\tx\n---\n"), "can't be read (ScannerError: "),
    "card: another type": (SET, card("---\ndataset_info: [1]\n---\n"), "can't be read (AttributeError: "),
    "card: no utf-8": (SET, card(b"---\nconfigs: \xff\n---\n"), "can't decode byte"),
    "card: python": (SET, card("---\nx: !!python/object/apply:os.mkdir [OWNED]\n---\n"), "ConstructorError: "),
    "card: the root": (SET, card("---\nconfigs:\n- config_name: x\n  data_files: /**\n---\n"), "takes in /proc"),
    "tar: empty": ({}, lambda folder: write_tar(folder / "d.tar", {}), "can't be read (Must pass at least one"),
    "tar: none": (
        {},
        file("d.tar", b"x" * 600),
        "can't be read (ReadError",
    ),
    "tar: broken json": ({}, lambda folder: write_tar(folder / "d.tar", {"1.json": b"{x"}), "can't be read (Expecting"),
    "tar: broken array": ({}, lambda folder: write_tar(folder / "d.tar", {"1.npy": b"x"}), "can't be read (EOF"),
    "root": ({"dataset_kwargs": {"data_files": "/**"}}, None, "task mine: /: takes in /proc"),
    "root by levels": ({"dataset_kwargs": {"data_files": "/*/*/*"}}, None, "takes in /proc"),
    "root as an address": ({"dataset_kwargs": {"data_files": "file:///**"}}, None, "takes in /proc"),
    "system": ({"dataset_kwargs": {"data_files": "/sys/*/*"}}, None, "takes in /sys"),
    "root as a data set": ({"dataset_path": "/", "dataset_kwargs": None}, None, "data set / can't be read"),
    "links in a circle": ({"dataset_kwargs": {"data_files": "set/**"}}, links, "leads to a folder that it lies in"),
    "a pipe": ({"dataset_kwargs": {"data_files": "set/*"}}, pipe, "x.jsonl: neither a file nor a folder"),
    "a pickle": (
        {"dataset_path": "pandas", "dataset_kwargs": {"data_files": "d.pkl"}},
        file("d.pkl", pickle.dumps(_Runs())),
        "it may run Python by the dataset_path 'pandas' in ",
    ),
    "no names": ({"dataset_kwargs": {"data_files": {"test": 5}}}, None, "data_files: found 5"),
}


COPIES = {"simplecache": {"cache_storage": "written", "same_names": True}}
WRITES: dict[str, tuple[dict[str, Any], str]] = {
    "storage": ({"data_files": "d.jsonl", "storage_options": COPIES}, "may write files by dataset_kwargs: 'storage_op"),
    "cache": ({"data_files": "d.jsonl", "cache_dir": "written"}, "may write files by dataset_kwargs: 'cache_dir'"),
    "download": ({"data_files": "d.jsonl", "download_config": {}}, "may write files by dataset_kwargs: 'download_conf"),
    "a copy": ({"data_files": "simplecache::file://{folder}/d.jsonl"}, "would be read by 'simplecache', expected bz2"),
    "in a tar": ({"data_files": {"test": ["tar://d::simplecache://::file://{folder}/d"]}}, "read by 'simplecache'"),
    "the last": ({"data_files": "zip://d.jsonl::github://o:r@/d.zip"}, "read by 'github', expected file"),
    "colons": ({"data_files": "simplecache::{folder}/*.jsonl"}, "read by 'simplecache'"),
    "a folder": ({"data_files": {"test": "d.jsonl"}, "data_dir": "simplecache::file://{folder}"}, "mine"),
}


@pytest.mark.parametrize("kind", WRITES)
def test_ways_to_data_by_which_files_are_written_are_asked_for(
    folder: Folder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.path)
    options, message = WRITES[kind]
    text = json.dumps(options).replace("{folder}", str(folder.path))
    path = folder.task(dataset_kwargs=json.loads(text))
    if kind == "a folder":  # a local one, whatever it is called
        assert resolve(path) == {message: 4}
    else:
        assert message in refused(path)
    group = folder.write("g.yaml", f"group: g\ndataset_path: json\ndataset_kwargs: {text}\ntask: [arc_easy]\n")
    if "may write" in message:
        assert message in refused(group)
    assert not (folder.path / "written").exists()


def test_a_card_names_plain_files(folder: Folder) -> None:
    card("---\nconfigs:\n- config_name: x\n  data_files: 'simplecache::file:///x'\n---\n")(folder.path)
    assert "would be read by 'simplecache'" in refused(folder.task(**SET))


def test_ways_to_data_that_were_read_and_trusted(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # which takes every archive for a remote one
    with zipfile.ZipFile(folder.path / "d.zip", "w") as archive:
        archive.write(folder.path / "d.jsonl", "d.jsonl")
    inside = folder.task(dataset_kwargs={"data_files": {"test": "zip://d.jsonl::d.zip"}})
    assert resolve(inside) == {"mine": 4}
    copies = tmp_path / "copies"
    options = {**TASK["dataset_kwargs"], "cache_dir": str(copies)}
    assert resolve(folder.task(dataset_kwargs=options), trust_remote_code=True) == {"mine": 4}
    assert copies.is_dir()


def test_lm_evals_functions_get_no_arguments_unasked(folder: Folder) -> None:
    base = harness_tasks() / "ruler" / "niah_single_2.yaml"  # loads the tokenizer that it is given, with its code
    path = folder.write("n.yaml", f"include: {base}\ntask: mine\nmetadata: {{tokenizer: ./evil}}\n")
    assert "it gives lm-eval's custom_dataset niah_utils.niah_single_2 arguments of its own" in refused(path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", BAD_DATA)
def test_data_that_cannot_be_read_is_one_line(folder: Folder, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, write, message = BAD_DATA[kind]
    monkeypatch.chdir(folder.path)
    if kind.startswith("tar"):
        changes = {"dataset_path": "webdataset", "dataset_kwargs": {"data_files": {"test": "d.tar"}}}
    if write:
        write(folder.path)
    assert message in refused(folder.task(**changes))
    assert not folder.mark.exists()


def test_a_tar_of_samples_is_asked(folder: Folder) -> None:
    write_tar(folder.path / "d.tar", {f"{n}.json": json.dumps(row).encode() for n, row in enumerate(ROWS)})
    data: dict[str, Any] = {"dataset_path": "webdataset", "dataset_kwargs": {"data_files": {"test": "d.tar"}}}
    assert resolve(folder.task(doc_to_text="{{json.q}}", doc_to_target="{{json.gold}}", **data)) == {"mine": 4}


def test_folders_with_too_much_in_them(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MOST_ENTRIES", 20)
    for number in range(30):
        folder.write(f"more/{number}.txt", "")
    path = folder.task()
    assert resolve(path) == {"mine": 4}  # a single task needs nothing of what lies beside it
    assert "more than 20 files and folders in it" in refused(folder.path)
    for name, pattern in (("deep", "**/*.jsonl"), ("flat", "*.jsonl")):
        files = {"dataset_kwargs": {"data_files": {"test": pattern}}}
        path = folder.write(f"{name}.yaml", yaml.safe_dump(TASK | files | {"task": name}))
        if name == "deep":
            assert "more than 20 files and folders in it" in refused(path)
        else:
            assert resolve(path) == {name: 4}


def test_the_root_is_no_folder_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MOST_ENTRIES", 2000)
    with pytest.raises(UserError, match=r"takes in /proc|more than 2,000 files"):
        expand("/")


VALUES: tuple[Any, ...] = (
    None,
    5,
    -1.5,
    True,
    "",
    "x",
    "{{",
    "{{q",
    [],
    [1],
    ["x"],
    {},
    {"x": 1},
    [[]],
    [{}],
    "a" * 3000,
)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_definitions_are_asked_or_refused_in_one_line(folder: Folder, seed: int) -> None:
    draw = random.Random(seed)
    keys = [*TASK, "filter_list", "fewshot_config", "num_fewshot", "generation_kwargs", "description", "tag", "group"]
    keys += ["repeats", "target_delimiter", "process_results", "dataset_name", "gen_prefix", "include", "metadata"]
    for number in range(12):
        changed = TASK | {key: draw.choice(VALUES) for key in draw.sample(keys, draw.choice((1, 1, 2)))}
        path = folder.write(f"{number}.yaml", yaml.safe_dump(changed))  # built tasks are kept by path
        try:
            resolve(path)
        except UserError as error:
            assert "\n" not in str(error)
