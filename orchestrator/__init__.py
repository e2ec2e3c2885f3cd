"""Everything that knows Ray: jobs, storage, telemetry and the command line."""
