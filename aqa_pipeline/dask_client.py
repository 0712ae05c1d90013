"""The door to a dask cluster."""

from __future__ import annotations

from typing import Any

from aqa_pipeline.errors import SetupError

_CONNECT_SECONDS = 20


def connect(scheduler: str) -> Any:
    """A client of the cluster, to be closed by the caller (it is a context manager).

    Parameters
    ----------
    scheduler : str
        Address, such as ``tcp://node1:8786``.

    Raises
    ------
    SetupError
        dask is not installed, the scheduler cannot be reached or has no workers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise SetupError(
            f"--backend dask needs the extra dask ({error}): type `pip install aqa-pipeline[dask]`"
        ) from None
    try:
        client = Client(  # type: ignore[no-untyped-call]
            scheduler, timeout=_CONNECT_SECONDS, set_as_default=False
        )
    except (OSError, ValueError, TimeoutError) as error:
        raise SetupError(f"no dask scheduler at {scheduler} ({error}); is it running?") from None
    if not client.nthreads():  # type: ignore[no-untyped-call]
        client.close()  # type: ignore[no-untyped-call]
        raise SetupError(f"the dask scheduler at {scheduler} has no workers yet")
    return client
