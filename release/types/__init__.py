"""The words of the house as frozen types: chip, model, cell, plan, verdict. Nothing here does anything."""

from release.types.benchmark import Benchmark, Data, Margin, Sampling
from release.types.cell import (
    Accuracy,
    Arm,
    CellFile,
    Conflict,
    Evaluation,
    GitSource,
    Parallel,
    QuestionSet,
    Reported,
    Score,
    Serve,
    Source,
    Trial,
    VendorPatch,
    Waiver,
    Weights,
    Wheel,
)
from release.types.chip import Access, Base, Bootstrap, Chip, Container, Device, Host, Python, Rule, Tool, When
from release.types.host import Hosts, Lent, LentHost, Seat, Staging
from release.types.model import Architecture, Checkpoint, Experts, Hub, LatentAttention, Model
from release.types.plan import Concern, Plan
from release.types.verdict import FAMILIES, State, Status, Verdict, family, state_of
from release.types.words import (
    CELL,
    COMMIT,
    ENV_NAME,
    IMAGE,
    JSON,
    PRECISIONS,
    RELATIVE,
    SECRET,
    SHA256,
    SIZE,
    SLUG,
    Argument,
    ByteSize,
    Digest,
    Dtype,
    Environment,
    Frozen,
    ImageReference,
    Precision,
    RelativePath,
    Slug,
    Unknown,
    dump,
    kebab,
    split_cell,
    tag_of,
    tuples,
)

__all__ = [
    "CELL", "COMMIT", "ENV_NAME", "FAMILIES", "IMAGE", "JSON", "PRECISIONS", "RELATIVE", "SECRET", "SHA256", "SIZE", "SLUG", "Access",
    "Accuracy", "Architecture", "Argument", "Arm", "Base", "Benchmark", "Bootstrap", "ByteSize", "CellFile", "Checkpoint", "Chip",
    "Concern", "Conflict", "Container", "Data", "Device", "Digest", "Dtype", "Environment", "Evaluation", "Experts", "Frozen",
    "GitSource", "Host", "Hosts", "Hub",
    "ImageReference", "LatentAttention", "Lent", "LentHost", "Margin", "Model", "Parallel", "Plan", "Precision", "Python",
    "QuestionSet", "RelativePath", "Reported", "Rule", "Sampling", "Score", "Seat", "Serve", "Slug", "Source", "Staging", "State", "Status",
    "Tool", "Trial", "Unknown", "VendorPatch", "Verdict", "Waiver", "Weights", "Wheel", "When", "dump", "family", "kebab", "split_cell",
    "state_of", "tag_of", "tuples",
]  # fmt: skip
