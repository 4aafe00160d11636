"""The defaults of a study's settings, written once: `records.Settings` and the command line's help read them here."""

from typing import Literal

OUT = "study"
"""the folder of a study"""
RUNGS = ("bf16", "fp16", "int8", "fp4", "nf4")
SCENARIOS = ("batch1", "max-batch")
ACCURACY_BATCH_SIZE = 8
ACCURACY_BACKEND: Literal["hf", "bitladder"] = "bitladder"
TOKEN_BUDGET = {"cpu": 1024, "cuda": 32768}
"""tokens of one forward: where a CPU's matrix products are as fast as they get, and where a GPU's do"""
DIVERGENCE_WINDOWS = 32
DIVERGENCE_WINDOW_TOKENS = 128
"""4,096 tokens take two CPU cores about ten seconds a rung and 135 million weights. From 32 documents they give a mean
divergence to within a tenth, which tells rungs apart; documents, not tokens, are the independent samples."""
SEED = 1234
DEVICE = "auto"
REQUESTS = {"batch1": 200, "max-batch": 2000}
"""the published study's workloads"""
PROMPT_TOKENS = 128
NEW_TOKENS = 128
CPU_MAX_BATCH = 8
"""in main memory thousands of requests fit, and the search would say nothing about speed"""
HALF_WIDTH_TARGET = 0.02
TIME_LIMIT_S = 1800.0
TIMEOUT_S = 6 * 3600.0
ASKED_FROM_S = 1800.0
"""what a study on a CPU may be expected to take before it asks whether it is meant"""
