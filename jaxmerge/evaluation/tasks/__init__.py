"""Tasks of questions with choices: a file each, which registers a record."""
