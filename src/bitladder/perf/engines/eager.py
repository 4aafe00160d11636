"""transformers' ``generate``, as most people deploy."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from bitladder.checkpoint.loading import load_model
from bitladder.checkpoint.memory import loaded_bytes
from bitladder.machine.cards import model_devices
from bitladder.perf.engines.engine import EngineRow, LaunchFacts, StepTimes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class EagerEngine:
    """transformers' ``generate``, one stamp a step through a stopping criterion that never stops.

    The model's own sampling settings are replaced, so that every checkpoint decodes greedily and in the same way.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        import torch
        from transformers import GenerationConfig

        self._model = model
        self._device: torch.device = model.device
        self._synchronize = synchronization(model_devices(model))
        own = model.generation_config
        eos = own.eos_token_id
        end = eos[0] if isinstance(eos, list) else eos
        self._model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            use_cache=True,
            eos_token_id=eos,
            # no row is ever padded: naming a token only keeps generate from warning
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else end,
        )

    @property
    def launch(self) -> LaunchFacts:
        import torch
        import transformers

        return {
            "engine": EAGER.name,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "attention": str(self._model.config._attn_implementation),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "cache": self._model.generation_config.cache_implementation or "dynamic",
            "decoding": "greedy",
            "device": ", ".join(map(str, model_devices(self._model))),
            "threads": torch.get_num_threads(),
        }

    @property
    def loaded_bytes(self) -> int:
        return loaded_bytes(self._model)

    def run(self, token_ids: Sequence[Sequence[int]], new_tokens: int) -> StepTimes:
        """See ``Engine.run``. Raises ValueError for rows of unequal length."""
        import torch

        clock = _StepClock(self._synchronize, torch.zeros(len(token_ids), dtype=torch.bool, device=self._device))
        started_s = time.perf_counter()
        output = self._generate(token_ids, new_tokens, [clock])  # (rows, prompt + new)
        tokens = output[:, len(token_ids[0]) :].tolist()
        if len(clock.step_end_s) != new_tokens or any(len(row) != new_tokens for row in tokens):
            raise RuntimeError(f"{len(clock.step_end_s)} steps and {len(tokens[0])} tokens for {new_tokens} new tokens")
        return StepTimes(started_s, tuple(clock.step_end_s), clock.hook_s, tuple(tuple(row) for row in tokens))

    def run_unstamped(self, token_ids: Sequence[Sequence[int]], new_tokens: int) -> float:
        """See ``Engine.run_unstamped``."""
        started_s = time.perf_counter()
        self._generate(token_ids, new_tokens, [])
        self._synchronize()
        return time.perf_counter() - started_s

    def _generate(
        self, token_ids: Sequence[Sequence[int]], new_tokens: int, stopping: "list[_StepClock]"
    ) -> "torch.Tensor":
        import torch
        from transformers import StoppingCriteriaList

        inputs = torch.tensor(token_ids, dtype=torch.long, device=self._device)  # (rows, prompt)
        generate = cast("Callable[..., torch.Tensor]", self._model.generate)
        return generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            stopping_criteria=StoppingCriteriaList(stopping),
        )


def synchronization(devices: "Sequence[torch.device]") -> Callable[[], None]:
    """What waits until every one of the devices has done all that it was given; on a CPU that is always so."""
    import torch

    waits = [partial(torch.accelerator.synchronize, device) for device in devices if device.type != "cpu"]
    if len(waits) < 2:
        return waits[0] if waits else (lambda: None)

    def wait_for_all() -> None:
        for wait in waits:
            wait()

    return wait_for_all


class _StepClock:
    """A stopping criterion that notes the time of every step and never stops."""

    def __init__(self, synchronize: Callable[[], None], go_on: "torch.Tensor") -> None:
        self.step_end_s: list[float] = []
        self.hook_s = 0.0
        self._synchronize = synchronize
        self._go_on = go_on  # (rows), False

    def __call__(self, input_ids: "torch.Tensor", scores: Any, **kwargs: Any) -> "torch.Tensor":
        entered_s = time.perf_counter()
        self._synchronize()
        self.step_end_s.append(time.perf_counter())
        self.hook_s += time.perf_counter() - entered_s
        return self._go_on


EAGER = EngineRow(
    name="eager",
    title="transformers' generate",
    start=lambda directory, policy: EagerEngine(load_model(directory, policy)),
    answering=load_model,
    of_model=EagerEngine,
)
