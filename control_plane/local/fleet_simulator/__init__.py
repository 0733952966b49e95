"""A simulated fleet: any number of devices in one process, on the real wire, with a profile."""
