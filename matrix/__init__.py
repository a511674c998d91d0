"""Which model is released for which chip: the data, how it is read, completed and checked."""
