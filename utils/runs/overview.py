"""Several runs side by side."""

from collections.abc import Iterable

from utils.runs.folder import RunFolder
from utils.runtime.table import Table


def overview(runs: Iterable[RunFolder]) -> Table:
    """One row for each run: how it stands, how far it is, how good it is."""
    rows = []
    for run in runs:
        state = run.state()
        best = state.get("best_val_loss")
        rows.append(
            (
                run.name,
                run.status(),
                f"{state.get('step', 0)}/{state.get('total_steps', '?')}",
                "-" if best is None else f"{best:.4f}",
                str(state.get("updated", "-"))[:16].replace("T", " "),
            )
        )
    return Table(rows, header=("run", "status", "step", "best val loss", "last active (UTC)"))
