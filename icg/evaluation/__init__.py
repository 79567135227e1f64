"""Judges, controls and simulated people. Nothing here may be imported by what trains: a test holds that."""
