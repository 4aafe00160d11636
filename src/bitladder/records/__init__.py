"""Everything that crosses a file or a process: frozen, closed to unknown fields, versioned.

A *rung* is a row of the ladder; a *checkpoint* a directory with a manifest, known by its content hash; a *measurement*
is (checkpoint, accuracy task | rescoring | scenario | divergence), known by the hash of both; a *record* is what one
left; a *finding* is what an audit says.
"""

from bitladder.records.base import SCHEMA_VERSION, Gpu, JournalEntry, Machine, Record, hash_json, parse_record
from bitladder.records.checkpoint import (
    Audit,
    Finding,
    LoadPolicy,
    Manifest,
    ManifestFile,
    MethodName,
    Scheme,
    Severity,
    Source,
    TaskSources,
)
from bitladder.records.measurement import (
    AccuracyTask,
    BatchProbe,
    BatchSample,
    CardSample,
    ChoiceScores,
    Divergence,
    DivergenceOutcome,
    EngineSettings,
    Item,
    MeasurementRecord,
    MemoryFigures,
    Outcome,
    PerformanceOutcome,
    Prompts,
    RequestSample,
    Rescoring,
    RescoringOutcome,
    ResourceSample,
    Scenario,
    Status,
    Way,
    WindowDivergence,
    measurement_id,
)
from bitladder.records.scoring import (
    PASSAGE,
    AccuracyOutcome,
    BatchPlan,
    Document,
    DocumentOutcome,
    MetricInfo,
    Order,
    ProductKernel,
    Scoring,
    TaskDocuments,
    join_kernels,
    join_scorings,
    order_key,
)
from bitladder.records.study import Calibration, LayerRate, MergeRecord, RungRecord, Settings, StudyRecord, TaskGroup
