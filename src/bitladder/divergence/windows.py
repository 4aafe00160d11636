"""Which tokens divergence is measured on: windows from the beginning of many documents, the same for every rung."""

from itertools import islice
from typing import TYPE_CHECKING

from bitladder.corpus import Corpus
from bitladder.errors import UserError
from bitladder.records import Prompts, hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cut_documents(tokenizer: "PreTrainedTokenizerBase", corpus: Corpus, windows: int, window_tokens: int) -> Prompts:
    """Up to ``windows`` windows of ``window_tokens``: the first of each document, then the second of each, and so on.

    Documents resemble themselves, so many of them say more than many windows. Each window starts as a request does,
    with a start-of-sequence token where the tokenizer puts one. Raises UserError where no document has a window.
    """
    texts = tokenizer(list(corpus.documents.values()), add_special_tokens=False, verbose=False)["input_ids"]
    first = tokenizer("a")["input_ids"][0]
    start = (first,) if first == tokenizer.bos_token_id else ()
    most = max(map(len, texts)) // window_tokens
    places = (
        (name, ids[place * window_tokens : (place + 1) * window_tokens])
        for place in range(most)
        for name, ids in zip(corpus.documents, texts, strict=True)
        if len(ids) >= (place + 1) * window_tokens
    )
    found = list(islice(places, windows))
    if not found:
        raise UserError(f"{corpus.origin}: no document has {window_tokens} tokens; leave it out with --no-divergence")
    token_ids = tuple((*start, *ids) for _, ids in found)
    documents = tuple(name for name, _ in found)
    return Prompts(
        token_ids=token_ids, prompts_hash=hash_json([documents, token_ids]), origin=corpus.origin, documents=documents
    )
