"""Everything that crosses a file or a process: frozen, closed to unknown fields, versioned.

A *rung* is a row of the ladder; a *checkpoint* a directory with a manifest, known by its content hash; a *measurement*
is (checkpoint, accuracy task | scenario | divergence), known by the hash of both; a *record* is what one left; a
*finding* is what an audit says.
"""

from bitladder.records.base import SCHEMA_VERSION, Gpu, Machine, Record, hash_json, parse_record
from bitladder.records.checkpoint import Audit, Finding, Manifest, ManifestFile, Scheme, Severity, Source
from bitladder.records.measurement import (
    AccuracyOutcome,
    AccuracyTask,
    BatchProbe,
    BatchSample,
    Divergence,
    DivergenceOutcome,
    Document,
    DocumentOutcome,
    Item,
    MeasurementRecord,
    MemoryFigures,
    MetricInfo,
    Outcome,
    PerformanceOutcome,
    Prompts,
    RequestSample,
    ResourceSample,
    Scenario,
    Status,
    TaskDocuments,
    WindowDivergence,
    measurement_id,
)
from bitladder.records.study import Calibration, LayerRate, MergeRecord, RungRecord, Settings, StudyRecord, TaskGroup

__all__ = [
    "SCHEMA_VERSION",
    "AccuracyOutcome",
    "AccuracyTask",
    "Audit",
    "BatchProbe",
    "BatchSample",
    "Calibration",
    "Divergence",
    "DivergenceOutcome",
    "Document",
    "DocumentOutcome",
    "Finding",
    "Gpu",
    "Item",
    "LayerRate",
    "Machine",
    "Manifest",
    "ManifestFile",
    "MeasurementRecord",
    "MemoryFigures",
    "MergeRecord",
    "MetricInfo",
    "Outcome",
    "PerformanceOutcome",
    "Prompts",
    "Record",
    "RequestSample",
    "ResourceSample",
    "RungRecord",
    "Scenario",
    "Scheme",
    "Settings",
    "Severity",
    "Source",
    "Status",
    "StudyRecord",
    "TaskDocuments",
    "TaskGroup",
    "WindowDivergence",
    "hash_json",
    "measurement_id",
    "parse_record",
]
