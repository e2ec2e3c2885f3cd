"""Many training jobs as one experiment: plan, choose, run, judge."""
