"""Which documents count as resembling each other."""

import random
import string

import pytest

from bitladder.tasks import documents
from bitladder.tasks.documents import cluster_field, cluster_labels


def prose(seed: int, length: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_lowercase + "  ", k=length))


def groups(labels: list[str | None]) -> list[list[int]]:
    found: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        if label is not None:
            found.setdefault(label, []).append(number)
    return sorted(found.values())


def unlike(count: int) -> list[dict[str, object]]:
    return [{"question": prose(1000 + number, 400)} for number in range(count)]


@pytest.mark.parametrize("length", [200, 260, 900])
@pytest.mark.parametrize("lead", [0, 1, 37, 301])
def test_two_hundred_equal_characters_anywhere_are_a_passage(length: int, lead: int) -> None:
    passage = prose(1, length)
    docs = unlike(20)
    docs[3] = {"question": passage + prose(2, 120)}
    docs[11] = {"choices": [prose(3, 30), {"text": prose(4, lead) + passage + prose(5, 40)}]}
    assert groups(cluster_labels("task", docs)) == [[3, 11]]


def test_less_is_none_and_so_are_short_texts() -> None:
    shared = prose(1, 149)
    docs = [*unlike(20), {"question": shared + prose(2, 300)}, {"question": prose(3, 300) + shared}]
    docs += [{"question": "What is it?"}, {"question": "What is it?"}, {"question": 5}, "text alone"]
    assert cluster_labels("task", docs) == [None] * len(docs)
    assert cluster_labels("task", []) == []


def test_documents_belong_together_by_way_of_others() -> None:
    one, other = prose(1, 250), prose(2, 250)
    docs = [*unlike(30), {"question": one}, {"question": f"{one} {other}"}, {"question": other}]
    assert groups(cluster_labels("task", docs)) == [[30, 31, 32]]


def test_what_over_a_fifth_shares_is_a_template() -> None:
    template, passage = prose(1, 300), prose(2, 300)
    docs = [{"question": template + prose(3 + number, 100)} for number in range(20)]
    for number in (0, 7, 9):
        docs[number] = {"question": template + passage + prose(50 + number, 100)}
    assert groups(cluster_labels("task", docs)) == [[0, 7, 9]]


@pytest.mark.parametrize("seed", range(4))
def test_the_end_of_a_template_is_no_passage(seed: int) -> None:
    """Each document goes on from it in its own way, so that few take the same part of it for theirs."""
    docs = [{"question": prose(seed, 300) + prose(1000 * seed + 77 + number, 100)} for number in range(200)]
    assert cluster_labels("task", docs) == [None] * 200


def test_labels_are_the_texts_alone_whatever_else_is_asked() -> None:
    docs = [*unlike(30), *({"question": prose(1, 300) + prose(number, 50)} for number in range(2, 5))]
    whole = cluster_labels("task", docs)
    assert cluster_labels("task", docs[::-1]) == whole[::-1]
    assert cluster_labels("task", docs[10:]) == whole[10:]


def test_a_field_is_taken_at_its_word() -> None:
    docs = [{"source_id": number // 2, "passage": prose(1, 300)} for number in range(6)]
    assert groups(cluster_labels("hellaswag_de", docs)) == [[0, 1], [2, 3], [4, 5]]
    assert groups(cluster_labels("task", docs, "source_id")) == [[0, 1], [2, 3], [4, 5]]
    assert groups(cluster_labels("hellaswag", docs, "passage")) == [[0, 1, 2, 3, 4, 5]]
    assert cluster_labels("task", docs[:1], "absent") == [None]
    assert cluster_field({"version": 1.0, "cluster": "passage"}) == "passage"
    assert [cluster_field(one) for one in (None, {}, [1], {"cluster": None})] == [None] * 4


def test_of_few_documents_a_fifth_may_be_about_one_passage() -> None:
    """60 passages of 16 questions, of which a limit asks the first 64: each is a quarter of them, and no template."""
    docs = [{"question": prose(number // 16, 300) + prose(500 + number, 40)} for number in range(64)]
    assert cluster_labels("task", docs) == [None] * 64
    assert [len(one) for one in groups(cluster_labels("task", docs, whole=960))] == [16] * 4


def test_texts_are_hashed_so_many_characters_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = [*unlike(20), *({"question": prose(1, 900) + prose(number, 50)} for number in range(2, 4))]
    whole = cluster_labels("task", docs)
    monkeypatch.setattr(documents, "_CHARACTERS_AT_ONCE", 500)
    assert cluster_labels("task", docs) == whole and groups(whole) == [[20, 21]]
