"""The Ray Data graph, the job around it, and what works on whole runs."""
