"""Asks every version of a repository its golden requests, by the backend's own runtime: `python tests/golden.py FOLDER`.

A process of its own, because the test session itself stays without TensorFlow.
"""

import json
import sys
from pathlib import Path

import numpy as np

from serving.manifest import GOLDEN
from serving.repository import versions
from serving.runtime import SavedModelRunner
from serving.savedmodel import read_signature, saved_model_folder

for version in versions(Path(sys.argv[1])):
    folder = saved_model_folder(version.folder)
    runner = SavedModelRunner(folder, read_signature(folder))
    runner.warm_up(4)
    golden = json.loads((version.folder / GOLDEN).read_text())
    answers = runner.run({name: np.array(values) for name, values in golden["inputs"].items()})
    for name, expected in golden["outputs"].items():
        np.testing.assert_allclose(answers[name], expected, atol=golden["tolerance"])
    print(f"{version.model}/{version.number}")
