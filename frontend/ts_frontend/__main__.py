import sys

from ts_frontend.cli import main

if __name__ == "__main__":
    sys.exit(main())
