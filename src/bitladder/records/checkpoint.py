"""What a checkpoint is (manifest), what an audit found in it, and how it is loaded."""

from typing import Any, Literal

from pydantic import Field

from bitladder.records.base import SCHEMA_VERSION, Record

MethodName = Literal["plain", "llm.int8", "bnb-4bit", "torchao-int8", "other"]
"""of the rows of `rungs.METHODS`"""


class Scheme(Record):
    """How a checkpoint's weights are stored and computed with.

    Types are named as SafeTensors names them (``F32``, ``BF16``, ``F16``, ``I8``), plus ``FP4`` and ``NF4`` for
    bitsandbytes' two 4-bit codebooks, which SafeTensors stores as packed ``U8``.
    """

    method: MethodName
    stored_type: str
    """type of the linear layers' weights in the file"""
    compute_type: str
    """type that the matrix products run in"""
    rest_type: str
    """type of what is never quantized: embedding, norms, head"""
    int8_threshold: float | None = None
    double_quantization: bool | None = None
    activation_type: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """what another library rounds its products' inputs to, such as ``INT8``; None where its format says nothing"""


class Source(Record):
    """Where a model came from, and what it is known by."""

    model: str
    """as the user wrote it: Hub id, directory or builtin:NAME"""
    kind: Literal["hub", "directory", "builtin"]
    revision: str | None
    """the resolved commit of a Hub model"""
    content_hash: str
    """SHA-256 over the names and SHA-256 of the files that make the model"""
    note: str | None = None
    """a fact every report has to show, such as that the source was already quantized"""
    speed_only: bool = False
    """whether its answers mean nothing, such as random weights'"""
    origin: "Source | None" = None
    """what a checkpoint of bitladder's that is taken for a model was made from"""

    @property
    def title(self) -> str:
        """The model, its revision and the beginning of its hash."""
        revision = f" at {self.revision}" if self.revision else ""
        return f"{self.model}{revision} (files {self.content_hash[:12]})"


class ManifestFile(Record):
    sha256: str
    size_bytes: int


class Manifest(Record):
    """``bitladder.json`` beside a checkpoint: the record of its quantization."""

    schema_version: int = SCHEMA_VERSION
    rung: str
    scheme: Scheme
    source: Source
    architecture: str
    quantizing_device: str
    versions: dict[str, str]
    recipe_hash: str
    """source content, scheme, library versions and quantizing device"""
    content_hash: str
    """tensors sorted by name: name, dtype, shape, bytes"""
    files: dict[str, ManifestFile]
    bytes_by_dtype: dict[str, int]
    parameters: int
    """number of weights, a tied head counted once"""
    unquantized_share: float = Field(default=0.0, exclude_if=lambda value: not value)
    """of the weights of matrix products those that the method can't replace and leaves as they were"""


Severity = Literal["info", "warning", "error"]


class Finding(Record):
    """One statement of one audit check."""

    check: str
    severity: Severity
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class Audit(Record):
    """All findings on one checkpoint. An error means: it isn't what it says."""

    schema_version: int = SCHEMA_VERSION
    checkpoint: str
    content_hash: str
    declared: Scheme
    declared_by: Literal["manifest", "config", "--as"]
    found: Scheme | None
    stored_bytes: int
    """of all tensors, as every figure of weights on disk; the files' headers are not counted"""
    loaded_bytes: int | None
    """bytes of parameters, buffers and quantization state in memory after one forward; None where not loaded"""
    findings: tuple[Finding, ...]

    @property
    def computed_here(self) -> str | None:
        """The type that this machine multiplied in, where the audit saw it; None: the scheme's own, or not loaded.

        Some CPUs pack 4-bit weights anew at the first forward, and then multiply in BF16 whatever the settings say.
        """
        return next((finding.data["computed_in"] for finding in self.findings if "computed_in" in finding.data), None)

    @property
    def passed(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")


class LoadPolicy(Record):
    """Where a model goes, and what of it may run."""

    device: str = "cpu"
    """``cpu``, ``cuda:0``, or ``cuda:0,1`` for cards that share the model"""
    trust_remote_code: bool = False
    """whether Python that comes with the model may run"""
    memory_limit_bytes: int | None = None
    """of the device, or of each of several cards, as if it had no more; None: all that it has"""


class TaskSources(Record):
    """Which tasks there are, and where their data come from."""

    requested: tuple[str, ...] = ()
    """names, groups or folders of YAML; without any a suite names them"""
    datasets: str | None = None
    """mirror in Hub layout; None: the Hub or its cache"""
    num_fewshot: int | None = None
    """examples a prompt; None: as each task says"""
    seed: int
    trust_remote_code: bool = False
    """whether Python that comes with the user's own tasks may run"""
