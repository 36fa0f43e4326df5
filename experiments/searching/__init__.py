"""`optforge search` and what belongs to it: the run, its view, the funnel, its end, and tuned constants."""
