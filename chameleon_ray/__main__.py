"""`python -m chameleon_ray` is `chameleon`."""

from chameleon_ray.cli import main

if __name__ == "__main__":
    main()
