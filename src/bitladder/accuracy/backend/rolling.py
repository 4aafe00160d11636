"""Rolling log-likelihood: a whole text, scored in windows of the model's length, each token once."""

from collections.abc import Sequence

import numpy as np

from bitladder.accuracy.backend.packing import Request
from bitladder.accuracy.backend.requests import RequestEncoder


def rolling_requests(encoder: RequestEncoder, texts: Sequence[str]) -> tuple[list[Request], list[int]]:
    """lm-eval's windows of every text, and the index of the text that each belongs to. An empty text has none."""
    from lm_eval.utils import get_rolling_token_windows

    requests, owners = [], []
    for index, tokens in enumerate(encoder.encode_all(texts)):
        windows = get_rolling_token_windows(tokens, encoder.prefix_token, encoder.max_length, context_len=1)
        for inputs, targets in windows:
            requests.append(Request(np.array(inputs, np.int32), np.array(targets, np.int32)))
            owners.append(index)
    return requests, owners
