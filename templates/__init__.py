"""What is rendered: Dockerfiles and cards."""
