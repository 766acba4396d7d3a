"""The only modules that read programs (jaxprs). Every caller has another way for a program that cannot be read."""
