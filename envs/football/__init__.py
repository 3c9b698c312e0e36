"""Google Research Football below its Python wrappers: scenarios, engine, camera, observation, drawing."""
