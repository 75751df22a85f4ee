"""Learning-rate schedules: a file each, which registers a record by name."""
