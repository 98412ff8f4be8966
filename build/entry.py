"""What the frozen executable starts: the same as ``python -m appliance``."""

from appliance.__main__ import main

if __name__ == "__main__":
    main()
