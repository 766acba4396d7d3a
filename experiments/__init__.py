"""Scripts: each a Config, run(config) -> arrays, plot(arrays, path) and main(arguments)."""
