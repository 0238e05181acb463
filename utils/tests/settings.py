"""What every test process needs, set before torch is imported."""

import os
import tempfile

# Two OpenMP threads wait for each other on tiny operations, many times longer than one works.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Real caches are left alone; one for the whole session, so that text is cut into tokens once.
os.environ["TBT_CACHE"] = tempfile.mkdtemp(prefix="tbt-test-cache-")
