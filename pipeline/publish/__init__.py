"""Put finished models where Ollama gets them: one module for each kind of target.

In: a `Release`, GGUF files that were written into the target's own staging files, and what the Modelfile says as data.
Out: manifests that appear last, all of them or none, and the commands that use them.
"""

from pipeline.publish._already import Already, Coming, already_there
from pipeline.publish._layers import manifests
from pipeline.publish._release import (
    PULL_CHECK,
    About,
    Prompt,
    Published,
    Release,
    ReleaseEntry,
    require_name,
    split_name,
)
from pipeline.publish._target import PublishTarget, TargetKind, open_target, redacted, targets
from pipeline.publish._wire import login_for

__all__ = [
    "PULL_CHECK",
    "About",
    "Already",
    "Coming",
    "Prompt",
    "PublishTarget",
    "Published",
    "Release",
    "ReleaseEntry",
    "TargetKind",
    "already_there",
    "login_for",
    "manifests",
    "open_target",
    "redacted",
    "require_name",
    "split_name",
    "targets",
]
