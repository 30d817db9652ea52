"""Arithmetic of the request limits, without I/O: windows, reserved polls, estimates from
answers.
"""
