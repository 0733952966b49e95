"""The embedded default: broker, worker, scheduler, api as children of one command."""
