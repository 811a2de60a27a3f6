"""What is measured about chameleon_ray, and how."""
