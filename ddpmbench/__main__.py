"""`python -m ddpmbench` is the command line."""

from ddpmbench.cli.main import main

if __name__ == "__main__":
    main()
