"""JaxMARL's suite: what its tasks look like, JAX on one core, many copies in one compiled step."""
