"""From a run directory to processes on nodes: run, supervisor, agent, engines, backends."""
