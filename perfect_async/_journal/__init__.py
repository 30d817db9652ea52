"""The journal on disk: records jobs before they spend units, so that they survive a crash."""
