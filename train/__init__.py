"""The shared training program of zlaunch: `python -m train --config train.json`."""
