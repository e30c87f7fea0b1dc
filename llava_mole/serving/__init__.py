"""Answering with a trained model; the demo and the command line share it."""
