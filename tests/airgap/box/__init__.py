"""The air-gap proof: a fresh Debian 12 in a container, the archive, and a wire that counts whoever tries to leave.

``python -m tests.airgap.box proof`` is ``make airgap-test``; ``… plug`` is ``make airgap-plug-test``. Both need
root, systemd-nspawn and debootstrap; where these are missing they say so and prove nothing.
"""
