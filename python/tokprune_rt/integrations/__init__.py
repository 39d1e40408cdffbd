"""The runtime inside other projects' pipelines, a module each, imported only by name."""
