"""The run configurations that ship with the package, one YAML file a run."""
