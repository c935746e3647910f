"""Everything that crosses a process: messages, servers, channels, telemetry. Imports no torch."""
