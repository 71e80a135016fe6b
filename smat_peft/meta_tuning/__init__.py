"""Learning the experts: the losses of one update, and the run over many."""
