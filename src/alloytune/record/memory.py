"""Peak memory of this process, measured anew for each stage where the system allows it."""

import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Start measuring anew (Linux; elsewhere the peak is that of the whole process)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Give the largest resident memory since the last reset."""
    return _of_status("VmHWM:")


def resident_bytes() -> int:
    """Give the resident memory of now (Linux; elsewhere the peak of the whole process)."""
    return _of_status("VmRSS:")


def _of_status(field: str) -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
