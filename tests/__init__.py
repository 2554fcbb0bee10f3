"""The tests. huggingface_hub reads its environment when it is imported, so it is set here, before anything else."""

import atexit
import os
import shutil
import tempfile

# The cache and the login of whoever runs the tests stay out of them. Processes that tests start inherit all this.
if "RSNN_ZOO_TESTS" not in os.environ:
    for _variable in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "RSNN_ZOO_ORG"):
        os.environ.pop(_variable, None)
    # The Hub of the tests is on this machine, which no proxy reaches.
    _direct = ",".join(filter(None, ("127.0.0.1", "localhost", os.environ.get("NO_PROXY"))))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = _direct
    # Not made here: what is killed leaves nothing behind, since hardly a test writes there.
    os.environ["HF_HOME"] = os.path.join(tempfile.gettempdir(), f"rsnn_zoo_tests_{os.getpid()}")
    os.environ["RSNN_ZOO_TESTS"] = "1"
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
    os.environ["HF_HUB_DISABLE_XET"] = "1"  # the Hub of the tests has no xet storage
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

# Networks this small run fastest on one thread, above all where several tests run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
