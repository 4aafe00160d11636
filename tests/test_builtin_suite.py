"""The packaged suite keeps what its README and the accuracy table promise of it."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bitladder.package import BUILTIN

KINDS = ("knowledge", "language", "arithmetic")
FOLDER = BUILTIN
WITHOUT_QUESTION = ("Answer:", "<|im_start|>")
"""the prompt with its question removed: what is left of a question, and of a stem without a description (the first
token alone)"""


@cache
def rows(name: str) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())


def items() -> Iterator[dict[str, Any]]:
    for kind in KINDS:
        yield from rows(kind)


def test_there_are_at_least_800_items() -> None:
    assert sum(1 for _ in items()) >= 800


@pytest.mark.parametrize("kind", KINDS)
class TestKind:
    def test_has_at_least_200_items(self, kind: str) -> None:
        assert len(rows(kind)) >= 200

    def test_items_have_the_five_fields_and_four_choices(self, kind: str) -> None:
        for row in rows(kind):
            assert list(row) == ["id", "template", "question", "choices", "answer"]
            assert len({choice.lower() for choice in row["choices"]}) == 4
            assert row["answer"] in range(4)
            assert row["question"] == row["question"].strip()

    def test_ids_number_the_items_in_order(self, kind: str) -> None:
        assert [row["id"] for row in rows(kind)] == [f"{kind}-{n:03d}" for n in range(1, len(rows(kind)) + 1)]

    def test_no_template_has_more_than_15_percent(self, kind: str) -> None:
        counts = Counter(row["template"] for row in rows(kind))
        assert max(counts.values()) <= 0.15 * len(rows(kind))

    def test_answers_are_balanced_over_positions(self, kind: str) -> None:
        counts = Counter(row["answer"] for row in rows(kind))
        assert all(0.22 <= counts[position] / len(rows(kind)) <= 0.28 for position in range(4))

    def test_a_prefix_holds_most_templates(self, kind: str) -> None:
        """``--limit`` takes the first documents; sorted by template, 100 of them would hold a few templates."""
        templates = {row["template"] for row in rows(kind)}
        assert len({row["template"] for row in rows(kind)[:100]}) >= 0.9 * len(templates)

    def test_examples_are_three_and_answer_no_item(self, kind: str) -> None:
        """An example must not hold an answer beside every word that tells the item from others of its template."""
        examples = _examples(kind)
        assert len(examples) == 3
        for row in rows(kind):
            answer = row["choices"][row["answer"]].lower()
            words = _words(row["question"])
            alike = [_words(other["question"]) for other in rows(kind) if other["template"] == row["template"]]
            telling = words.difference(set[str].intersection(*alike)) or words
            for example in examples:
                assert row["question"].lower() not in example.lower()
                assert not telling <= _words(example) or answer not in _words(example), (row["question"], example)

    def test_task_asks_every_item(self, kind: str) -> None:
        assert _task(kind) == {"task": f"bitladder_{kind}", "data_file": f"{kind}.jsonl"}


def test_no_question_is_asked_twice() -> None:
    asked = Counter(" ".join(row["question"].lower().split()) for row in items())
    assert [question for question, count in asked.items() if count > 1] == []


def test_a_question_mark_ends_a_question_and_nothing_else() -> None:
    """The prompt's form hangs on it: a question is wrapped in Question/Answer, a stem is continued as it stands."""
    for row in items():
        first_word = row["question"].split()[0]
        asks = first_word in {"What", "Which", "Where", "Who", "In", "On"} and row["question"].endswith("?")
        assert row["question"].endswith("?") == asks, row["question"]


def test_prose_has_a_few_thousand_words_in_distinct_passages() -> None:
    passages = rows("prose")
    words = [len(passage["text"].split()) for passage in passages]
    assert 3000 <= sum(words) <= 4000
    assert all(180 <= count <= 220 for count in words)
    assert len({passage["id"] for passage in passages}) == len(passages)
    assert len({passage["text"] for passage in passages}) == len(passages)
    assert _task("prose") == {"task": "bitladder_prose", "data_file": "prose.jsonl"}


@pytest.mark.smollm2
def test_every_choice_is_one_token(smollm2: Path) -> None:
    tokens = _token_ids(smollm2)
    assert {choice for choice, ids in tokens.items() if len(ids) != 1} == set()


@pytest.mark.slow
@pytest.mark.smollm2
def test_without_the_question_at_most_35_percent_are_right(smollm2: Path) -> None:
    """One forward ranks every item's choices: without its question, a task's prompts are all the same."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = {choice: ids[0] for choice, ids in _token_ids(smollm2).items()}
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)  # far faster where a CPU has no BF16
    asked = [(kind, prompt) for kind in KINDS for prompt in (*WITHOUT_QUESTION, *_bare_prompts(kind))]
    for kind, prompt in asked:
        with torch.inference_mode():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].float()  # (vocabulary,)
        right = [_best(row["choices"], tokens, logits) == row["answer"] for row in rows(kind)]
        assert sum(right) <= 0.35 * len(right), f"{kind} after {prompt!r}"


def _task(name: str) -> dict[str, str]:
    config = _config(name)
    return {"task": config["task"], "data_file": config["dataset_kwargs"]["data_files"]["test"]}


def _config(name: str) -> dict[str, Any]:
    import yaml

    config: dict[str, Any] = yaml.safe_load((FOLDER / f"bitladder_{name}.yaml").read_text(encoding="utf-8"))
    return config


def _examples(kind: str) -> list[str]:
    """The worked examples before every item of a task."""
    description: str = _config(kind)["description"]
    assert description.endswith("\n\n"), "a blank line parts the last example from the item"
    return description.removesuffix("\n\n").split("\n\n")


def _bare_prompts(kind: str) -> Iterator[str]:
    """The description with nothing of an item behind it: what is left of a stem, and of a question."""
    description = "\n\n".join(_examples(kind))
    yield description
    yield f"{description}\n\nAnswer:"


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text.lower()))


def _token_ids(checkpoint: Path) -> dict[str, list[int]]:
    """Token ids of every choice as lm-eval continues a prompt with it: after one space."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    choices = sorted({choice for row in items() for choice in row["choices"]})
    ids = tokenizer([f" {choice}" for choice in choices], add_special_tokens=False).input_ids
    return dict(zip(choices, ids, strict=True))


def _best(choices: list[str], tokens: dict[str, int], logits: Any) -> int:
    return max(range(len(choices)), key=lambda index: float(logits[tokens[choices[index]]]))


def test_reports_say_how_many_templates_there_are() -> None:
    assert len({(kind, row["template"]) for kind in KINDS for row in rows(kind)}) == 82
