"""Result folders as lm-eval 0.4.13 writes them with --log_samples, without a model that answered."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATE = "2026-01-02T03-04-05.678901"


@dataclass(frozen=True)
class LoggedTask:
    """One task's log: ``scores`` has the answers of each metric and filter, by document."""

    name: str
    scores: Mapping[tuple[str, str], Sequence[float]]
    """(metric, filter) -> one value a document"""
    choices: int | None = 4
    """None: answers are generated"""
    docs: Sequence[Mapping[str, Any]] | None = None
    prompt: str = "Question {index} of {task}:\nAnswer:"
    num_fewshot: int = 0
    version: float = 1.0
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(next(iter(self.scores.values())))

    def doc(self, index: int) -> Mapping[str, Any]:
        return self.docs[index] if self.docs else {"question": f"{self.name} {index}", "answer": index % 4}


def write_logs(
    directory: Path, tasks: Sequence[LoggedTask], groups: Mapping[str, Sequence[str]] | None = None, date: str = DATE
) -> Path:
    """Write ``results_DATE.json`` and ``samples_TASK_DATE.jsonl`` and return the folder that a user would name."""
    folder = directory / "some__model"
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        lines = [
            json.dumps(sample(task, index, name), ensure_ascii=False)
            for name in dict.fromkeys(name for _, name in task.scores)
            for index in range(task.count)
        ]
        (folder / f"samples_{task.name}_{date}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / f"results_{date}.json").write_text(json.dumps(results(tasks, groups or {}), indent=2))
    return directory


def sample(task: LoggedTask, index: int, filter_name: str) -> dict[str, Any]:
    """One line. The likeliest choice is the right one where the first metric says so, else the next."""
    doc = task.doc(index)
    prompt = task.prompt.format(index=index, task=task.name)
    own = {metric: values[index] for (metric, name), values in task.scores.items() if name == filter_name}
    target = index % (task.choices or 4)
    if task.choices:
        chosen = target if next(iter(own.values())) == 1 else (target + 1) % task.choices
        likelihoods = [-0.5 if choice == chosen else -2.0 - choice for choice in range(task.choices)]
        arguments: list[tuple[str, Any]] = [(prompt, f" choice {choice}") for choice in range(task.choices)]
        responses: list[Any] = [[[str(one), str(one == -0.5)]] for one in likelihoods]
    else:
        arguments = [(prompt, {"until": ["\n\n"], "do_sample": False})]
        responses = [[f"The answer is {target if next(iter(own.values())) == 1 else target + 1}."]]
    return {
        "doc_id": index,
        "doc": doc,
        "target": str(target),
        "arguments": {
            f"gen_args_{number}": {f"arg_{place}": part for place, part in enumerate(pair)}
            for number, pair in enumerate(arguments)
        },
        "resps": responses,
        "filtered_resps": [each[0] for each in responses],
        "filter": filter_name,
        "metrics": list(own),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(str(target)),
        **own,
    }


def results(tasks: Sequence[LoggedTask], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What lm-eval says of the run, as far as anything here reads it."""
    return {
        "results": {
            task.name: {
                "alias": task.name,
                **{f"{metric},{name}": sum(values) / len(values) for (metric, name), values in task.scores.items()},
            }
            for task in tasks
        },
        "groups": {group: {"alias": group} for group in groups},
        "group_subtasks": {group: list(members) for group, members in groups.items()},
        "configs": {
            task.name: {
                "task": task.name,
                "output_type": "multiple_choice" if task.choices else "generate_until",
                "metric_list": [{"metric": metric, "aggregation": "mean"} for metric, _ in task.scores],
            }
            for task in tasks
        },
        "versions": {task.name: task.version for task in tasks},
        "n-shot": {task.name: task.num_fewshot for task in tasks},
        "higher_is_better": {
            task.name: {metric: task.higher_is_better.get(metric, True) for metric, _ in task.scores} for task in tasks
        },
        "n-samples": {task.name: {"original": task.count, "effective": task.count} for task in tasks},
        "lm_eval_version": "0.4.13",
        "chat_template_sha": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
