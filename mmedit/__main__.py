"""`python -m mmedit`, and so `accelerate launch -m mmedit`."""

from mmedit.cli import main

if __name__ == "__main__":
    main()
