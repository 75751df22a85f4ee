"""Turns the numbers of a study into tables, figures and report.html."""
