"""Scripts, each an `Experiment`: Config, run(config) -> results, plot(results, path), summarise; one `main` for all."""
