"""lm-eval tasks to test on: a YAML folder with data beside it, and a mirror in the Hub's layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import yaml

LETTERS = ["A", "B", "C", "D"]
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
"""the mirror that a checkout of the whole project has beside it"""

UTILS = """
def add_question(docs):
    return docs.map(_question)

def _question(doc):
    return {"query": f"Question: {doc['a']} + {doc['b']} =", "gold": doc["b"] % 4}
"""

_CHOICE = {
    "output_type": "multiple_choice",
    "process_docs": "utils.add_question",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_target": "gold",
    "doc_to_choice": LETTERS,
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
_SUM = [{"a": a, "b": b} for a in range(3) for b in range(4)]
TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    # The first document comes twice.
    "tiny_choice": (_CHOICE, [*_SUM, _SUM[0]]),
    "tiny_long": (
        {**_CHOICE, "doc_to_choice": "words", "task_alias": "Long"},
        [{**row, "words": ["one", "twenty-two", "three hundred", "four"]} for row in _SUM[:5]],
    ),
    "tiny_generate": (
        {
            "output_type": "generate_until",
            "doc_to_text": "Count: {{start}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "filter_list": [
                {
                    "name": "strict-match",
                    "filter": [{"function": "regex", "regex_pattern": "#### (\\d+)"}, {"function": "take_first"}],
                },
                {
                    "name": "flexible-extract",
                    "filter": [{"function": "regex", "regex_pattern": "(.)"}, {"function": "take_first"}],
                },
            ],
        },
        [{"start": start, "answer": "("} for start in range(6)],
    ),
    "tiny_prose": (
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [
                {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
                {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            ],
        },
        [{"text": "The quick brown fox. " * repeats} for repeats in (1, 2, 5)],
    ),
    "tiny_last_word": (
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
            "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
        },
        [{"text": text} for text in ("a ladder has rungs", "the sum of twelve and thirty")],
    ),
    "tiny_two_contexts": (
        {
            "output_type": "multiple_choice",
            "doc_to_text": "gold",
            "doc_to_choice": "contexts",
            "doc_to_target": "ending",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
        [
            {"gold": gold, "contexts": ["The fox sees the dog as it", "The fox sees the cat as it"], "ending": end}
            for gold, end in ((0, "jumps"), (1, "is lazy"))
        ],
    ),
}


def write_tasks(folder: Path) -> Path:
    """All of `TASKS` with their JSON lines, and the group ``tiny`` of the first two."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utils.py").write_text(UTILS)
    for name, (config, rows) in TASKS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"test": f"{name}.jsonl"}
        write_yaml(
            folder / f"{name}.yaml",
            {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": data},
                "test_split": "test",
                **config,
            },
        )
    group = {"group": "tiny", "task": ["tiny_choice", "tiny_long"], "aggregate_metric_list": [{"metric": "acc"}]}
    write_yaml(folder / "group.yaml", group)
    return folder


def write_yaml(path: Path, config: dict[str, Any]) -> None:
    """A task's YAML; ``process_docs`` becomes a function."""
    text = yaml.safe_dump(config, sort_keys=False)
    path.write_text(text.replace("process_docs: ", "process_docs: !function "))


def write_mirror(mirror: Path, *, without_split: str | None = None) -> Path:
    """Data set ``tiny/sums`` with two configurations, as parquet with a card, like on the Hub."""
    folder = mirror / "tiny" / "sums"
    card: list[dict[str, Any]] = []
    for config, offset in (("low", 0), ("high", 50)):
        splits = {"train": _SUM[:1], "validation": _SUM[:6], "test": _SUM}
        files = []
        for split, rows in splits.items():
            if split == without_split:
                continue
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{**row, "a": row["a"] + offset} for row in rows]
            datasets.Dataset.from_list(rows).to_parquet(str(path))
            files.append({"split": split, "path": f"{config}/{split}-*"})
        card.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    return mirror


def write_mirror_task(folder: Path, **changes: Any) -> Path:
    """A YAML file of task ``sums`` over the mirror's data set; a key changed to None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utils.py").write_text(UTILS)
    splits = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
    config = {"task": "sums", "dataset_path": "tiny/sums", "dataset_name": "high", **splits, **_CHOICE, **changes}
    write_yaml(folder / "sums.yaml", {key: value for key, value in config.items() if value is not None})
    return folder / "sums.yaml"


def copy_tasks(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target
