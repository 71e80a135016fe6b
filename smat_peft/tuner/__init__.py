"""SMAT as a PEFT method: configuration, layers, tuner, and tasks."""
