"""bitladder's lm-eval backend: tasks, prompts and scoring are lm-eval's, the forwards are ours.

python -m bitladder.accuracy.backend run --model bitladder --model_args pretrained=DIR,dtype=float32 --tasks arc_easy
"""

import dataclasses
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text, resolve_max_length

from bitladder.accuracy.backend.attention import UnsupportedModelError
from bitladder.accuracy.backend.compiling import WIDENED, compile_errors, widens_products
from bitladder.accuracy.backend.generation import (
    DEFAULT_NEW_TOKENS,
    Prompt,
    common_prefix,
    generate,
    make_prompts,
    require_greedy,
)
from bitladder.accuracy.backend.plan import MAX_ROWS, Plan, Request, budget_on, plan_packs, rows_at_once, token_bytes
from bitladder.accuracy.backend.scoring import Scores, by_task, made_ahead, remembered, score, split_requests
from bitladder.accuracy.backend.speedups import NO_SPEEDUPS, Speedups, default_speedups, kernel_errors
from bitladder.accuracy.backend.support import require_known, require_support
from bitladder.accuracy.backend.tokens import RequestEncoder
from bitladder.accuracy.forwards import Forwards, record_scoring
from bitladder.accuracy.samples import Journal
from bitladder.checkpoint.skeleton import FORWARD_ERRORS
from bitladder.errors import DoesNotFitError, UserError
from bitladder.records import BatchPlan, Scoring
from bitladder.text.words import first_line
from bitladder.units import OnProgress

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

FALLBACK_BATCH_SIZE = 8
_LEAST_BUDGET = 64


def _release_memory() -> None:
    """What an out of memory left behind, tensors in cycles included."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


@register_model("bitladder")
class BitladderLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Scores with every token of a task forwarded once, and generates with continuous batching.

    Args:
        model: a causal language model in evaluation mode; its quantized layers run as they are.
        tokenizer: its tokenizer.
        token_budget: tokens a forward; None: the device's best that fits its memory.
        seed: which requests share a batch. A second seed shows what of the answers depends on that.
        max_rows: texts generated side by side, where they fit the memory.
        max_length: tokens a request may have; None: the model's own context length.
        fallback_batch_size: rows a batch where the model can only run lm-eval's way, which is said in a warning.
        progress: gets (requests done, requests in all) of each call.
        cache_requests: remember tokenized requests in the user's cache, for the next rung.
        ways: what is done on a GPU to be faster; None: what pays there.
        journal: what batches of log-likelihoods gave before, and gets what they give.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        token_budget: int | None = None,
        seed: int = 0,
        max_rows: int = MAX_ROWS,
        max_length: int | None = None,
        fallback_batch_size: int = FALLBACK_BATCH_SIZE,
        progress: OnProgress | None = None,
        cache_requests: bool = True,
        speedups: Speedups | None = None,
        journal: Journal | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._device = model.device
        self.seed = seed
        self.max_rows = max_rows
        self.max_length: int = max_length or resolve_max_length(model.config, tokenizer)
        self.token_budget = token_budget or budget_on(str(model.device), token_bytes(model, model.device.type))
        self.fallback_batch_size = fallback_batch_size
        self._progress = progress
        self.encoder = RequestEncoder(tokenizer, self.max_length, cache=cache_requests)
        self._journal = journal
        self.speedups = speedups or NO_SPEEDUPS
        self.plans: list[Plan] = []
        """of the log-likelihoods scored so far, in order"""
        self.forwards = Forwards()
        """those of the plans, and all that generated or ran lm-eval's way"""
        self.unsupported: str | None = None
        """why the model runs lm-eval's way; None: it runs ours"""
        self.generated_by_hf: str | None = None
        """why it generated lm-eval's way although it is scored ours"""
        self._hf: Any = None
        self._halved = False
        self._asked_budget = self.token_budget
        try:
            require_known(model)
            self.speedups = speedups or default_speedups(model)
            require_support(model, self.speedups)
        except UnsupportedModelError as error:
            self.unsupported = str(error)
            log.warning("%s: scored by lm-eval's hf backend, because %s", type(model).__name__, error)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """From lm-eval's ``--model_args``: see `load_lm` for the names."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """The same, parsed."""
        from bitladder.accuracy.backend.arguments import load_arguments

        return cls(**load_arguments(arg_dict, additional_config or {}))

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def max_gen_toks(self) -> int:
        return DEFAULT_NEW_TOKENS

    @property
    def truncated(self) -> set[str]:
        """Contexts that were cut on the left, being longer than the model's."""
        return self.encoder.truncated

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the results has to know of how they came about."""
        alone = (self._hf.alone,) if self._hf is not None and self._hf.alone else ()
        if self.unsupported is not None:
            return (f"scored by lm-eval's hf backend, because {self.unsupported}", *self.forwards.remarks, *alone)
        found = [*self.forwards.remarks, *alone]
        if self.generated_by_hf is not None:
            found.append(f"generated by lm-eval's hf backend, because {self.generated_by_hf}")
        if self.token_budget != self._asked_budget:
            found.append(
                f"ran out of memory, so batches had {self.token_budget} tokens instead of {self._asked_budget}"
            )
        if self._halved:
            found.append(f"ran out of memory, so {self.max_rows} texts were generated side by side, and not more")
        if widens_products(self.model):
            found.append(WIDENED)
        return tuple(found)

    @property
    def scoring(self) -> Scoring:
        """What a record keeps of how the answers were computed."""
        return record_scoring(self.model, self.forwards, None if self.unsupported is not None else self.speedups)

    @property
    def batch_plans(self) -> tuple[BatchPlan, ...]:
        """What a record keeps of `plans`."""
        return tuple(
            BatchPlan(
                seed=plan.seed,
                token_budget=plan.token_budget,
                batches=len(plan.packs),
                tokens=plan.tokens,
                digest=plan.digest,
                compositions=plan.compositions,
            )
            for plan in self.plans
        )

    @property
    def prefix_token_id(self) -> int:
        return self.encoder.prefix_token

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.encoder.encode(string, add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation. Raises UserError for a tokenizer without a chat template."""
        if self.tokenizer.chat_template is None:
            raise UserError("the tokenizer has no chat template (a base model?); evaluate without one")
        prompt = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(prompt)

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy continuation) of each (context, continuation)."""
        if not requests:
            return []
        return self._ours_or_hf(self._loglikelihood, "loglikelihood", requests, disable_tqdm)

    def _ours_or_hf(
        self,
        ours: "Callable[[list[Instance], bool], list[Answer]]",
        name: str,
        requests: "list[Instance]",
        disable_tqdm: bool,
        why: str | None = None,
    ) -> list[Answer]:
        """lm-eval's way where the model is known to need it, and where a forward of ours turns out to be none that the
        model can do: only what fails there too is the model's own error."""
        import torch

        cannot_run: tuple[type[Exception], ...] = (
            UnsupportedModelError,
            *FORWARD_ERRORS,
            *kernel_errors(self.speedups),
        )
        why = why or self.unsupported
        if why is None:
            try:
                return ours(requests, disable_tqdm)
            except torch.OutOfMemoryError:
                raise
            except cannot_run as error:
                why = self.unsupported = f"{type(error).__name__} in a forward of ours ({first_line(error)})"
                log.warning(
                    "%s: asked lm-eval's way from here on, because of %s", type(self.model).__name__, why, exc_info=True
                )
                self.plans.clear()
                _release_memory()
        theirs: list[Answer] = getattr(self._hf_lm(), name)(requests, disable_tqdm=disable_tqdm)
        return theirs

    def _loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]

        def plans() -> Iterator[Plan]:
            if not self.speedups.overlapped:
                return iter([self._plan(self.encoder.pairs(pairs))])
            bounds = split_requests(pairs, self.token_budget)
            return made_ahead(self._plan(self.encoder.pairs(pairs[start:end])) for start, end in bounds)

        scores = self._score(plans, len(pairs), disable_tqdm)
        broken = int((~np.isfinite(scores.loglikelihood)).sum())
        if broken:  # a record of them is refused, but lm-eval's command makes none
            log.warning(
                "overflowed: log-likelihoods of %d of %d requests aren't numbers, of some for what was beside them",
                broken,
                len(pairs),
            )
        answers = list(zip(scores.loglikelihood.tolist(), scores.greedy.tolist(), strict=True))
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def _plan(self, requests: Sequence[Request]) -> Plan:
        return plan_packs(requests, seed=self.seed, token_budget=self.token_budget)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        raise NotImplementedError("loglikelihood() tokenizes all requests at once")

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text as a whole."""
        return self._ours_or_hf(self._rolling, "loglikelihood_rolling", requests, disable_tqdm)

    def _rolling(self, requests: "list[Instance]", disable_tqdm: bool) -> list[float]:
        texts = [request.args[0] for request in requests]
        windows, owners = self.encoder.windows(texts)
        totals = [0.0] * len(texts)
        if windows:
            scores = self._score(lambda: [self._plan(windows)], len(windows), disable_tqdm)
            for owner, value in zip(owners, scores.loglikelihood.tolist(), strict=True):
                totals[owner] += value
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _score(self, make_plans: Callable[[], Iterable[Plan]], requests: int, disable_tqdm: bool) -> Scores:
        """Plan and run; out of memory means half the budget and all over, since the plans depend on it."""
        import torch

        while True:
            made: list[Plan] = []
            run = Forwards()
            try:
                with self._bar(requests, disable_tqdm) as advance, run.seen(self.model):
                    scores = score(
                        self.model,
                        remembered(make_plans(), made),
                        self.speedups,
                        lambda done: advance(done, requests),
                        self._journal,
                    )
            except torch.OutOfMemoryError as error:
                if self.token_budget <= _LEAST_BUDGET:
                    raise DoesNotFitError(f"out of memory with {self.token_budget} tokens a batch ({error})") from None
                self.token_budget //= 2
                log.warning("out of memory: the token budget is now %d", self.token_budget)
            except compile_errors(self.speedups.compiled) as error:
                log.warning("the model's modules can't be compiled here, so they run as they are (%s)", error)
                self.speedups = dataclasses.replace(self.speedups, compiled=False)
            else:
                self.plans += made
                # all of the plans, whatever of them the journal had
                run.rows = Counter(len(pack.tokens) for plan in made for pack in plan.packs)
                self.forwards += run
                return scores
            _release_memory()

    @contextmanager
    def _bar(self, total: int, disable_tqdm: bool) -> Iterator[OnProgress]:
        """Tells lm-eval's progress bar and whoever made us how many requests are done."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=total, desc="requests", disable=disable_tqdm) as bar:

            def advance(done: int, total: int) -> None:
                bar.update(done - bar.n)
                if self._progress is not None:
                    self._progress(done, total)

            yield advance

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each context, up to a stop string or the limit."""
        why = self.unsupported
        try:
            require_greedy(self.model, [normalize_gen_kwargs(one.args[1], DEFAULT_NEW_TOKENS) for one in requests])
        except UnsupportedModelError as error:
            why = self.generated_by_hf = str(error)
        if why is not None:
            log.warning("generated by lm-eval's hf backend, because %s", why)
        return self._ours_or_hf(self._generate_until, "generate_until", requests, disable_tqdm, why)

    def _generate_until(self, requests: "list[Instance]", disable_tqdm: bool) -> list[str]:
        asked = [
            (request.args[0], dict(normalize_gen_kwargs(request.args[1], DEFAULT_NEW_TOKENS))) for request in requests
        ]
        prompts = make_prompts(self.encoder, self.model, asked)
        answers: dict[int, str] = {}
        with self._bar(len(prompts), disable_tqdm) as advance:

            def finished(index: int, tokens: list[int]) -> None:
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                answers[index] = postprocess_generated_text(text, prompts[index].stops.stops, None)
                self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
                advance(len(answers), len(prompts))

            for members in by_task(requests):
                self._generate(prompts, members, finished)
        return [answers[index] for index in range(len(prompts))]

    def _generate(self, prompts: list[Prompt], members: list[int], finished: Callable[[int, list[int]], None]) -> None:
        """One task's prompts; all of them anew, half as many rows at once, where memory runs out, so that which texts
        share a batch is a matter of that number alone."""
        import torch

        chosen = [prompts[index] for index in members]
        longest = max(len(one.tokens) + one.limit for one in chosen) - common_prefix([one.tokens for one in chosen])
        slots = rows_at_once(self.model, longest, min(self.max_rows, len(chosen)))
        while True:
            try:
                with self.forwards.generated() as seen:
                    generate(
                        self.model,
                        chosen,
                        slots=slots,
                        token_budget=self.token_budget,
                        finished=lambda position, tokens: finished(members[position], tokens),
                        seen=seen,
                        speedups=self.speedups,
                    )
            except torch.OutOfMemoryError as error:
                if slots == 1:
                    raise DoesNotFitError(f"out of memory while generating one text ({error})") from None
                slots = self.max_rows = slots // 2
                self._halved = True
                log.warning("out of memory: now %d rows at once", slots)
            else:
                self.forwards.side_by_side = max(self.forwards.side_by_side, slots)
                return
            _release_memory()

    def _hf_lm(self) -> Any:
        from bitladder.accuracy.huggingface import HuggingFaceModel

        if self._hf is None:
            self._hf = HuggingFaceModel(self.model, self.tokenizer, self.fallback_batch_size, self._progress)
            self._hf._max_length = self.max_length
            self._hf.truncated = self.truncated
            self._hf.forwards = self.forwards
        return self._hf
