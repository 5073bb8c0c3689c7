"""Tests of meshq/security. `world` makes one small mesh in memory for them."""
