"""What several test files of this folder share."""

import json

import pytest

import rsnn_zoo

QUIET = {"checks": 0, "chunk": 16}


@pytest.fixture(scope="module")
def digits():
    return rsnn_zoo.load_dataset("digits", "test").select(30)


def comparable(report):
    """But for time."""
    runs = [{key: value for key, value in run.items() if key != "seconds"} for run in report["runs"]]
    else_where = dict.fromkeys(("created", "git_revision", "processes", "resumed_from"))
    return json.loads(json.dumps({**report, "runs": runs, **else_where}))
