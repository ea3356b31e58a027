"""The ServerApp: composition root of the server side. The same object runs on every engine."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan that the run config names, in the folder that it names."""
    from server.setup import DEPLOYMENT, engine_of, fedsec_home, read_setup  # noqa: PLC0415 - torch and data are loaded only when a run starts

    if engine_of(context.run_config, fedsec_home()) == DEPLOYMENT:
        from server.live import run_live  # noqa: PLC0415

        run_live(grid, context)
    else:
        from server.federation import run_federation  # noqa: PLC0415

        run_federation(grid, read_setup(context.run_config))
