"""What a person asks of a worker that runs in another process: small files in a folder that it looks at."""

from __future__ import annotations

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.workflow.files import write_bytes
from ptycho_bluesky.workflow.run_state import forget_outcome, run_folder, run_states

__all__ = ["ask_cancel", "ask_retry", "clear_cancel", "clear_retry", "is_cancelled", "requests"]

CANCEL, RETRY = "cancel", "retry"


def ask_retry(settings: Settings, uid: str) -> str:
    """Let a run with an outcome be taken up again; see `ptycho_bluesky.workflow.run_state.forget_outcome`."""
    whole = forget_outcome(settings, uid)
    # Whoever wants it now no longer wants it given up.
    clear_cancel(settings, whole)
    write_bytes(settings.worker_dir / "requests" / f"{RETRY}-{whole}", b"")
    return whole


def ask_cancel(settings: Settings, uid: str) -> str:
    """Have a run given up, whether it is being worked on or waits.

    It ends with the stage that is under way, at the latest; no other run is learned from, or tested, on its labels.
    Once its model is being registered it is too late.

    Parameters
    ----------
    settings : Settings
    uid : str
        Uid of the run, or the beginning of one that the worker has taken up.

    Returns
    -------
    str
        The whole uid.

    Raises
    ------
    InputError
        Several runs begin so, the run has its outcome already, or a shortened uid is of no run that was taken up.
    """
    found = [state for state in run_states(settings) if uid and state.uid.startswith(uid)]
    if len(found) > 1 or (not found and len(uid) < 36):
        raise InputError(
            f"run {uid!r}", f"{len(found)} runs that were taken up begin so", "give the whole uid of a run that waits"
        )
    if found and found[0].outcome:
        raise InputError(f"run {found[0].uid}", f"it was {found[0].outcome} already", "there is nothing to cancel")
    whole = found[0].uid if found else uid
    write_bytes(settings.worker_dir / "requests" / f"{CANCEL}-{whole}", b"")
    if found:
        # A training looks for this between its steps.
        write_bytes(run_folder(settings, whole).cancel, b"")
    return whole


def requests(settings: Settings) -> tuple[set[str], set[str]]:
    """Uids of the runs that are to be cancelled, and of those to be taken up again."""
    folder = settings.worker_dir / "requests"
    try:
        names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return set(), set()
    parts = [name.split("-", 1) for name in names if "-" in name]
    return ({uid for kind, uid in parts if kind == CANCEL}, {uid for kind, uid in parts if kind == RETRY})


def is_cancelled(settings: Settings, uid: str) -> bool:
    """Whether a person has asked for a run to be given up."""
    return (settings.worker_dir / "requests" / f"{CANCEL}-{uid}").exists() or run_folder(settings, uid).cancel.exists()


def clear_cancel(settings: Settings, uid: str) -> None:
    """A run was given up, or can no longer be."""
    # The request last: with it, who dies in between does both again.
    run_folder(settings, uid).cancel.unlink(missing_ok=True)
    (settings.worker_dir / "requests" / f"{CANCEL}-{uid}").unlink(missing_ok=True)


def clear_retry(settings: Settings, uid: str) -> None:
    """A run was taken up again."""
    (settings.worker_dir / "requests" / f"{RETRY}-{uid}").unlink(missing_ok=True)
