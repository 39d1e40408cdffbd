"""Learning what to prune, with PyTorch and transformers (``pip install 'tokprune-rt[train]'``).

`finetune` makes a dense classifier, regression, tagger or question answering of an encoder;
`train_ltp`, `train_top`, `train_gate` and `train_power_bert` learn what to prune of it; `evaluate`
runs the result in the runtime. `distil` teaches an embedding model its own vectors under a policy,
without labels. `import_ltp`, `import_top` and `import_lat` read what the published
codes wrote. The results are ordinary model folders: transformers loads them dense,
`tokprune_rt.load` pruned.
"""

from __future__ import annotations

from tokprune_rt.train.data import Data, Examples, Question, Questions, Sentences
from tokprune_rt.train.distilling import Distilled, DistilRun, DistilSchedule, distil
from tokprune_rt.train.evaluating import Evaluation, evaluate
from tokprune_rt.train.hard import PolicyChooser
from tokprune_rt.train.importing import import_lat, import_ltp, import_top
from tokprune_rt.train.learning import SCHEDULES, Schedule
from tokprune_rt.train.masked import Chooser, MaskedEncoder, Pass
from tokprune_rt.train.reading import Columns, read_examples
from tokprune_rt.train.recipes import (
    finetune,
    train_gate,
    train_ltp,
    train_power_bert,
    train_top,
)
from tokprune_rt.train.runs import Result, Run
from tokprune_rt.train.stage import Settings

__all__ = [
    "SCHEDULES",
    "Chooser",
    "Columns",
    "Data",
    "DistilRun",
    "DistilSchedule",
    "Distilled",
    "Evaluation",
    "Examples",
    "MaskedEncoder",
    "Pass",
    "PolicyChooser",
    "Question",
    "Questions",
    "Result",
    "Run",
    "Schedule",
    "Sentences",
    "Settings",
    "distil",
    "evaluate",
    "finetune",
    "import_lat",
    "import_ltp",
    "import_top",
    "read_examples",
    "train_gate",
    "train_ltp",
    "train_power_bert",
    "train_top",
]
