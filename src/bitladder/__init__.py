"""Which numeric precision should this causal language model be deployed in?

    from bitladder import Limits, Settings, audit, load_results, quantize, recommend, run_study

    checkpoint = quantize("builtin:smollm2-135m", "nf4", out=Path("smollm2-nf4"))
    assert audit(checkpoint.directory).passed
    results = run_study(Settings(model="builtin:smollm2-135m", suite="builtin", limit=50), Path("study"))
    print(recommend(summarize(results), Limits(max_drop_points=5.0)).sentence)

Names are loaded when first used: ``import bitladder`` costs nothing, and reading results needs no torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from bitladder.package import __version__

if TYPE_CHECKING:
    from bitladder.auditing import audit
    from bitladder.decide import recommend
    from bitladder.decide.recommendation import Limits
    from bitladder.publish import publish_checkpoint
    from bitladder.quantization import quantize
    from bitladder.records import Settings
    from bitladder.report import write_report
    from bitladder.report.published_tables import compare_published
    from bitladder.results.merge import merge_results, pack
    from bitladder.results.store import load_results
    from bitladder.study.run import run_study
    from bitladder.summary.summarize import summarize

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported: its profiler greets on stderr

_HOMES = {
    "Limits": "bitladder.decide.recommendation",
    "Settings": "bitladder.records",
    "audit": "bitladder.auditing",
    "compare_published": "bitladder.report.published_tables",
    "load_results": "bitladder.results.store",
    "merge_results": "bitladder.results.merge",
    "pack": "bitladder.results.merge",
    "publish_checkpoint": "bitladder.publish",
    "quantize": "bitladder.quantization",
    "recommend": "bitladder.decide",
    "run_study": "bitladder.study.run",
    "summarize": "bitladder.summary.summarize",
    "write_report": "bitladder.report",
}

__all__ = [
    "Limits",
    "Settings",
    "__version__",
    "audit",
    "compare_published",
    "load_results",
    "merge_results",
    "pack",
    "publish_checkpoint",
    "quantize",
    "recommend",
    "run_study",
    "summarize",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bitladder' has no attribute {name!r}")
